/* SPDX-License-Identifier: Apache-2.0 */
#include "tlskeys.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/x509_vfy.h>

#include "tlsreason.h"

enum {
    KEY_LEAST = 16,
    KEY_MOST = 256,      /* OpenSSL's bound of a TLS 1.3 PSK */
    IDENTITY_MOST = 128,
    READ_BUFFER = 64 * 1024, /* of one recv(): several TLS records */
};

/* A PSK is bound to a hash (RFC 8446 4.2.11): both suites have SHA-256. */
static const char SUITES[] = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256";
static const unsigned char SUITE_OF_KEY[] = {0x13, 0x01};

/* --------------------------------------------------------------------- PSK */

/* A session of its own for each handshake: OpenSSL writes into it, and several threads may shake hands at once. */
static SSL_SESSION *session_of(const colo_tls *tls, SSL *ssl)
{
    const SSL_CIPHER *cipher = SSL_CIPHER_find(ssl, SUITE_OF_KEY);
    SSL_SESSION *session = SSL_SESSION_new();

    if (session && cipher && SSL_SESSION_set1_master_key(session, tls->key, tls->key_len) &&
        SSL_SESSION_set_cipher(session, cipher) && SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION))
        return session;
    SSL_SESSION_free(session);
    return NULL;
}

static int offer_psk(SSL *ssl, const EVP_MD *md, const unsigned char **id, size_t *id_len, SSL_SESSION **session)
{
    const colo_tls *tls = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));

    *session = NULL;
    *id = NULL;
    *id_len = 0;
    if (md && EVP_MD_get_type(md) != NID_sha256)
        return 1; /* the server asks for a suite whose hash is not the key's: no PSK, so the handshake will fail */
    *session = session_of(tls, ssl);
    *id = (const unsigned char *)tls->identity;
    *id_len = strlen(tls->identity);
    return *session != NULL;
}

static int find_psk(SSL *ssl, const unsigned char *id, size_t id_len, SSL_SESSION **session)
{
    const colo_tls *tls = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
    struct colo_tls_clues *clues = SSL_get_app_data(ssl);

    *session = NULL;
    if (id_len != strlen(tls->identity) || memcmp(id, tls->identity, id_len) != 0) {
        clues->offer = COLO_TLS_OFFER_UNKNOWN;
        return 1;
    }
    clues->offer = COLO_TLS_OFFER_KNOWN;
    *session = session_of(tls, ssl);
    return *session != NULL;
}

/* ------------------------------------------------------------ certificates */

/* OpenSSL forgets a certificate that it refuses: keep whose it was, for the log. */
static int remember(int ok, X509_STORE_CTX *store)
{
    X509 *certificate = X509_STORE_CTX_get_current_cert(store);
    SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct colo_tls_clues *clues = SSL_get_app_data(ssl);

    if (!ok && certificate)
        X509_NAME_oneline(X509_get_subject_name(certificate), clues->distrusted, (int)sizeof clues->distrusted);
    return ok;
}

/* ---------------------------------------------------------------- contexts */

/* A key file with a passphrase: fail, don't ask the terminal of a daemon. */
static int no_passphrase(char *buffer, int size, int writing, void *data)
{
    (void)buffer;
    (void)size;
    (void)writing;
    (void)data;
    return -1;
}

static void *refuse(colo_tls *tls, char *text, size_t text_len, const char *what, const char *which)
{
    unsigned long code = ERR_peek_error(); /* the first: those behind it say that something failed, not what */
    const char *why = ERR_SYSTEM_ERROR(code) ? strerror(ERR_GET_REASON(code)) : ERR_reason_error_string(code);

    snprintf(text, text_len, "%s%s%s%s%s", what, which ? " " : "", which ? which : "", why ? ": " : "",
             why ? why : "");
    ERR_clear_error();
    colo_tls_destroy(tls);
    return NULL;
}

static colo_tls *create(bool server, char *text, size_t text_len)
{
    colo_tls *tls;

    ERR_clear_error();
    tls = calloc(1, sizeof *tls);
    if (!tls)
        return refuse(NULL, text, text_len, "no memory", NULL);
    atomic_init(&tls->holders, 1);
    tls->server = server;
    tls->bio_method = colo_tls_bio_method();
    tls->ctx = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
    if (!tls->bio_method || !tls->ctx || !SSL_CTX_set_min_proto_version(tls->ctx, TLS1_3_VERSION) ||
        !SSL_CTX_set_max_proto_version(tls->ctx, TLS1_3_VERSION) || !SSL_CTX_set_ciphersuites(tls->ctx, SUITES) ||
        !SSL_CTX_set_num_tickets(tls->ctx, 0))
        return refuse(tls, text, text_len, "TLS can't be set up", NULL);
    SSL_CTX_set_app_data(tls->ctx, tls);
    SSL_CTX_set_options(tls->ctx, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                      SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_clear_options(tls->ctx, SSL_OP_ALLOW_NO_DHE_KEX | SSL_OP_IGNORE_UNEXPECTED_EOF);
    SSL_CTX_set_session_cache_mode(tls->ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_clear_mode(tls->ctx, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_mode(tls->ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_read_ahead(tls->ctx, 1);
    SSL_CTX_set_default_read_buffer_len(tls->ctx, READ_BUFFER);
    SSL_CTX_set_default_passwd_cb(tls->ctx, no_passphrase);
    return tls;
}

colo_tls *colo_tls_psk(bool server, const char *identity, const uint8_t *key, size_t key_len, char *text,
                       size_t text_len)
{
    colo_tls *tls;

    ERR_clear_error();
    if (!identity[0] || strlen(identity) > IDENTITY_MOST)
        return refuse(NULL, text, text_len, "the identity of a pre-shared key has 1 to 128 bytes", NULL);
    if (key_len < KEY_LEAST || key_len > KEY_MOST)
        return refuse(NULL, text, text_len, "a pre-shared key has 16 to 256 bytes", NULL);
    tls = create(server, text, text_len);
    if (!tls)
        return NULL;
    tls->identity = strdup(identity);
    tls->key = malloc(key_len);
    if (!tls->identity || !tls->key)
        return refuse(tls, text, text_len, "no memory", NULL);
    memcpy(tls->key, key, key_len);
    tls->key_len = key_len;
    if (server) {
        SSL_CTX_set_psk_find_session_callback(tls->ctx, find_psk);
    } else {
        SSL_CTX_set_psk_use_session_callback(tls->ctx, offer_psk);
        /* No authority is known, so a server that answers with a certificate instead of the PSK is refused. */
        SSL_CTX_set_verify(tls->ctx, SSL_VERIFY_PEER, NULL);
    }
    return tls;
}

colo_tls *colo_tls_certificates(bool server, const char *certificate, const char *key, const char *ca,
                                const char *peer_name, char *text, size_t text_len)
{
    colo_tls *tls = create(server, text, text_len);

    if (!tls)
        return NULL;
    if (SSL_CTX_use_certificate_chain_file(tls->ctx, certificate) != 1)
        return refuse(tls, text, text_len, "certificate", certificate);
    if (SSL_CTX_use_PrivateKey_file(tls->ctx, key, SSL_FILETYPE_PEM) != 1)
        return refuse(tls, text, text_len, "private key", key);
    if (SSL_CTX_check_private_key(tls->ctx) != 1)
        return refuse(tls, text, text_len, "the private key is not the certificate's:", key);
    if (SSL_CTX_load_verify_file(tls->ctx, ca) != 1)
        return refuse(tls, text, text_len, "authority", ca);
    if (peer_name && X509_VERIFY_PARAM_set1_host(SSL_CTX_get0_param(tls->ctx), peer_name, 0) != 1)
        return refuse(tls, text, text_len, "not a DNS name:", peer_name);
    SSL_CTX_set_verify(tls->ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, remember);
    return tls;
}

void colo_tls_hold(colo_tls *tls)
{
    atomic_fetch_add(&tls->holders, 1);
}

void colo_tls_destroy(colo_tls *tls)
{
    if (!tls || atomic_fetch_sub(&tls->holders, 1) > 1)
        return;
    SSL_CTX_free(tls->ctx);
    BIO_meth_free(tls->bio_method);
    if (tls->key)
        OPENSSL_cleanse(tls->key, tls->key_len);
    free(tls->key);
    free(tls->identity);
    free(tls);
}
