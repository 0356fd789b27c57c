/* SPDX-License-Identifier: Apache-2.0 */
/* Both ends in one thread over a socketpair: each call of a transport goes as far as it can. */
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "check.h"
#include "tls.h"

static const uint8_t KEY[32] = {1, 2, 3}, OTHER_KEY[32] = {1, 2, 4};

struct two {
    colo_tls *client_keys, *server_keys;
    colo_transport *client, *server;
    int client_result, server_result;
};

static colo_tls *psk(bool server, const char *identity, const uint8_t *key)
{
    char text[200] = "";
    colo_tls *tls = colo_tls_psk(server, identity, key, 32, text, sizeof text);

    CHECK(tls != NULL);
    CHECK_STR(text, "");
    return tls;
}

static struct two join(colo_tls *client_keys, colo_tls *server_keys)
{
    struct two t = {.client_keys = client_keys, .server_keys = server_keys};
    int fds[2];

    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    t.client = colo_transport_create(client_keys, fds[0]);
    t.server = colo_transport_create(server_keys, fds[1]);
    CHECK(t.client && t.server);
    return t;
}

static bool waits(int result)
{
    return result == COLO_TRANSPORT_READ || result == COLO_TRANSPORT_WRITE;
}

/* Until both are done, or one has failed and the other knows. */
static void shake(struct two *t)
{
    t->client_result = t->server_result = COLO_TRANSPORT_READ;
    for (int i = 0; i < 20 && (waits(t->client_result) || waits(t->server_result)); i++) {
        if (waits(t->client_result))
            t->client_result = colo_transport_handshake(t->client);
        if (waits(t->server_result))
            t->server_result = colo_transport_handshake(t->server);
    }
}

static void part(struct two *t)
{
    colo_transport_destroy(t->client);
    colo_transport_destroy(t->server);
    colo_tls_destroy(t->client_keys);
    colo_tls_destroy(t->server_keys);
}

static void check_carries(colo_transport *from, colo_transport *to)
{
    uint8_t got[16];

    CHECK_EQ(colo_transport_write(from, (const uint8_t *)"hello", 5), 5);
    CHECK_EQ(colo_transport_read(to, got, sizeof got), 5);
    CHECK_MEM(got, "hello", 5);
    CHECK(!colo_transport_pending(to));
    CHECK_EQ(colo_transport_read(to, got, sizeof got), COLO_TRANSPORT_READ);
}

/* ------------------------------------------------------------------------- PSK */

static void test_psk(void)
{
    struct two t = join(psk(false, "pair", KEY), psk(true, "pair", KEY));

    shake(&t);
    CHECK_EQ(t.client_result, 0);
    CHECK_EQ(t.server_result, 0);
    CHECK_STR(colo_transport_peer(t.client), "pair");
    CHECK_STR(colo_transport_peer(t.server), "pair");
    CHECK_STR(colo_transport_cipher(t.client), "TLSv1.3 TLS_AES_128_GCM_SHA256");
    CHECK_STR(colo_transport_error(t.client), "");
    check_carries(t.client, t.server);
    check_carries(t.server, t.client);
    part(&t);
}

static void test_psk_refused(void)
{
    static const char wrong[] = "wrong pre-shared key or identity";
    static const struct {
        const char *name, *identity;
        const uint8_t *key;
    } rows[] = {{"wrong key", "pair", OTHER_KEY}, {"wrong identity", "other", KEY}, {"both", "other", OTHER_KEY}};

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct two t = join(psk(false, rows[i].identity, rows[i].key), psk(true, "pair", KEY));
        uint8_t byte;

        shake(&t);
        CHECK_NOTE("%s", rows[i].name);
        CHECK_EQ(t.client_result, COLO_ERR_SYSTEM);
        CHECK_EQ(t.server_result, COLO_ERR_SYSTEM);
        CHECK_STR(colo_transport_error(t.client), wrong);
        CHECK_STR(colo_transport_error(t.server), wrong);
        CHECK_STR(colo_transport_peer(t.server), "");
        CHECK_EQ(colo_transport_handshake(t.server), COLO_ERR_SYSTEM);
        CHECK_EQ(colo_transport_read(t.server, &byte, 1), COLO_ERR_MISUSE);
        CHECK_EQ(colo_transport_write(t.server, &byte, 1), COLO_ERR_MISUSE);
        part(&t);
    }
}

static void test_keys_without_sense(void)
{
    char text[200], longest[130];

    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    CHECK(!colo_tls_psk(true, "pair", KEY, 15, text, sizeof text));
    CHECK_STR(text, "a pre-shared key has 16 to 256 bytes");
    CHECK(!colo_tls_psk(true, "", KEY, 32, text, sizeof text));
    CHECK(!colo_tls_psk(true, longest, KEY, 32, text, sizeof text));
    CHECK_STR(text, "the identity of a pre-shared key has 1 to 128 bytes");
    CHECK(!colo_tls_certificates(true, "/nowhere/a.pem", "/nowhere/a.key", "/nowhere/ca.pem", NULL, text, sizeof text));
    CHECK_STR(text, "certificate /nowhere/a.pem: No such file or directory");
    colo_tls_destroy(NULL);
    colo_transport_destroy(NULL);
}

/* ------------------------------------------------------------------- strangers */

/* What comes on the port of a side with a PSK, from one that knows nothing of us. */
static void test_strangers(void)
{
    static const char plain[] = "the peer does not speak TLS: plain text?";
    static const struct {
        const char *bytes;
        size_t len;
        bool server;
        const char *error; /* NULL: waits for more */
    } rows[] = {
        {"GET / HTTP/1.1\r\n\r\n", 18, true, plain},
        {"\0\0\1\20{\"coloproxy\": 1}", 18, true, plain},
        {"SSH-2.0-OpenSSH_9.2\r\n", 21, true, plain},
        {"\0", 1, true, plain},
        {"HTTP/1.1 400 Bad Request\r\n", 26, false, plain},
        {"\x16", 1, true, NULL},
        {"\x16\3\1\0\5\1\0\0\1\0", 10, true, "TLS: "},
        {"\x16\3\1\xff\xff", 5, true, "TLS: "},
        {"\x15\3\1\0\2\2\x28", 7, false, "wrong pre-shared key or identity"},
        {"\x15\3\1\0\2\2\x46", 7, false, "the peer does not speak TLS 1.3"},
        {"\x15\3\1\0\2\2\x28", 7, true, plain}, /* no client begins with an alert */
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        colo_tls *keys = psk(rows[i].server, "pair", KEY);
        colo_transport *t;
        int fds[2], result;

        CHECK_NOTE("row %zu", i);
        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
        t = colo_transport_create(keys, fds[0]);
        CHECK_EQ(write(fds[1], rows[i].bytes, rows[i].len), (ssize_t)rows[i].len);
        result = colo_transport_handshake(t);
        if (rows[i].error) {
            CHECK_EQ(result, COLO_ERR_SYSTEM);
            if (strcmp(rows[i].error, "TLS: ") == 0) /* OpenSSL's words */
                CHECK(strncmp(colo_transport_error(t), "TLS: ", 5) == 0);
            else
                CHECK_STR(colo_transport_error(t), rows[i].error);
        } else {
            CHECK_EQ(result, COLO_TRANSPORT_READ);
            close(fds[1]);
            fds[1] = -1;
            CHECK_EQ(colo_transport_handshake(t), COLO_ERR_SYSTEM);
            CHECK_STR(colo_transport_error(t), "the connection was cut");
        }
        close(fds[1]);
        colo_transport_destroy(t);
        colo_tls_destroy(keys);
    }
}

/* A client of OpenSSL's with settings of its own against our server. */
static void raw_client(SSL_CTX *ctx, colo_tls *server_keys, const char *error, int reason)
{
    SSL *ssl = SSL_new(ctx);
    colo_transport *server;
    int fds[2], client = -1, result = COLO_TRANSPORT_READ;
    unsigned long code = 0;

    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0);
    server = colo_transport_create(server_keys, fds[1]);
    SSL_set_fd(ssl, fds[0]);
    for (int i = 0; i < 20 && (client != 1 || waits(result)); i++) {
        if (!code && client != 1) {
            ERR_clear_error();
            client = SSL_connect(ssl);
            code = ERR_get_error();
        }
        if (waits(result))
            result = colo_transport_handshake(server);
    }
    CHECK_EQ(result, COLO_ERR_SYSTEM);
    CHECK_STR(colo_transport_error(server), error);
    CHECK_EQ(ERR_GET_REASON(code), reason);
    colo_transport_destroy(server);
    colo_tls_destroy(server_keys);
    SSL_free(ssl);
    SSL_CTX_free(ctx);
    close(fds[0]);
}

static unsigned int psk_of_tls12(SSL *ssl, const char *hint, char *identity, unsigned int max_identity,
                                 unsigned char *key, unsigned int max_key)
{
    (void)ssl;
    (void)hint;
    (void)max_key;
    snprintf(identity, max_identity, "pair");
    memcpy(key, KEY, sizeof KEY);
    return sizeof KEY;
}

static void test_other_clients(void)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());

    /* TLS 1.2 with the right key */
    SSL_CTX_set_max_proto_version(ctx, TLS1_2_VERSION);
    SSL_CTX_set_cipher_list(ctx, "PSK");
    SSL_CTX_set_psk_client_callback(ctx, psk_of_tls12);
    raw_client(ctx, psk(true, "pair", KEY), "the peer does not speak TLS 1.3",
               SSL_AD_REASON_OFFSET + SSL_AD_PROTOCOL_VERSION);
    /* TLS 1.3 without a key */
    ctx = SSL_CTX_new(TLS_client_method());
    raw_client(ctx, psk(true, "pair", KEY), "the peer offers no pre-shared key that fits",
               SSL_AD_REASON_OFFSET + SSL_AD_HANDSHAKE_FAILURE);
    /* TLS 1.3 with the right key, but a suite of another hash */
    ctx = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_ciphersuites(ctx, "TLS_AES_256_GCM_SHA384");
    SSL_CTX_set_psk_client_callback(ctx, psk_of_tls12);
    raw_client(ctx, psk(true, "pair", KEY), "the peer offers no pre-shared key that fits",
               SSL_AD_REASON_OFFSET + SSL_AD_HANDSHAKE_FAILURE);
}

/* ------------------------------------------------------------------------ data */

static void test_plain(void)
{
    struct two t = join(NULL, NULL);
    uint8_t byte;

    shake(&t);
    CHECK_EQ(t.client_result, 0);
    CHECK_EQ(t.server_result, 0);
    CHECK_STR(colo_transport_peer(t.client), "");
    CHECK_STR(colo_transport_cipher(t.client), "plain text");
    check_carries(t.client, t.server);
    check_carries(t.server, t.client);
    colo_transport_destroy(t.client);
    t.client = NULL;
    CHECK_EQ(colo_transport_read(t.server, &byte, 1), COLO_TRANSPORT_CLOSED);
    part(&t);
}

/* Writes until the socket is full, reads all, and again; every byte arrives, in order. */
static void carry_much(struct two *t)
{
    enum { SIZE = 300 * 1000, ALL = 5 * 1000 * 1000 };
    static uint8_t out[SIZE], in[SIZE];
    size_t sent = 0, got = 0, blocked = 0;

    while (got < ALL) {
        while (sent < ALL) {
            size_t len = ALL - sent < SIZE ? ALL - sent : SIZE;
            long n;

            for (size_t i = 0; i < len; i++)
                out[i] = (uint8_t)((sent + i) * 31 >> 3);
            n = colo_transport_write(t->client, out, len); /* after WRITE: the same bytes again */
            if (n == COLO_TRANSPORT_WRITE) {
                blocked++;
                break;
            }
            REQUIRE(n > 0);
            sent += (size_t)n;
        }
        for (;;) {
            long n = colo_transport_read(t->server, in, 1 + got % SIZE);

            if (n == COLO_TRANSPORT_READ) {
                CHECK(!colo_transport_pending(t->server));
                break;
            }
            REQUIRE(n > 0);
            for (long i = 0; i < n; i++)
                if (in[i] != (uint8_t)((got + (size_t)i) * 31 >> 3)) {
                    CHECK_EQ(in[i], (uint8_t)((got + (size_t)i) * 31 >> 3));
                    return;
                }
            got += (size_t)n;
        }
    }
    CHECK_EQ(got, ALL);
    CHECK(blocked > 0);
}

static void test_much_data(void)
{
    struct two t = join(psk(false, "pair", KEY), psk(true, "pair", KEY));

    /* Keys that are given up live on in their connections. */
    colo_tls_destroy(t.client_keys);
    colo_tls_destroy(t.server_keys);
    t.client_keys = t.server_keys = NULL;
    shake(&t);
    carry_much(&t);
    part(&t);
    t = join(NULL, NULL);
    carry_much(&t);
    part(&t);
}

/* What is decrypted already, poll() will not tell. */
static void test_pending(void)
{
    struct two t = join(psk(false, "pair", KEY), psk(true, "pair", KEY));
    uint8_t got[4];

    shake(&t);
    CHECK(!colo_transport_pending(t.server));
    CHECK_EQ(colo_transport_write(t.client, (const uint8_t *)"abcdef", 6), 6);
    CHECK_EQ(colo_transport_read(t.server, got, 4), 4);
    CHECK(colo_transport_pending(t.server));
    CHECK_EQ(colo_transport_read(t.server, got, 4), 2);
    CHECK(!colo_transport_pending(t.server));
    part(&t);
}

/* A goodbye, a cut without one, and a peer that is gone while we write: an error, no signal. */
static void test_ends(void)
{
    struct two t = join(psk(false, "pair", KEY), psk(true, "pair", KEY));
    uint8_t byte = 0;
    long n = 1;

    shake(&t);
    colo_transport_destroy(t.client);
    t.client = NULL;
    CHECK_EQ(colo_transport_read(t.server, &byte, 1), COLO_TRANSPORT_CLOSED);
    part(&t);
    t = join(psk(false, "pair", KEY), psk(true, "pair", KEY));
    shake(&t);
    shutdown(colo_transport_fd(t.client), SHUT_RDWR);
    CHECK_EQ(colo_transport_read(t.server, &byte, 1), COLO_ERR_SYSTEM);
    CHECK_STR(colo_transport_error(t.server), "the connection was cut");
    CHECK_EQ(colo_transport_read(t.server, &byte, 1), COLO_ERR_SYSTEM);
    part(&t);
    for (int tls = 0; tls < 2; tls++) {
        t = tls ? join(psk(false, "pair", KEY), psk(true, "pair", KEY)) : join(NULL, NULL);
        shake(&t);
        colo_transport_destroy(t.client);
        t.client = NULL;
        for (int i = 0; i < 3 && n > 0; i++)
            n = colo_transport_write(t.server, &byte, 1);
        CHECK_EQ(n, COLO_ERR_SYSTEM);
        CHECK_STR(colo_transport_error(t.server), "Broken pipe");
        n = 1;
        part(&t);
    }
}

/* ---------------------------------------------------------------- certificates */

/* A directory with authorities "ca" and "bad", and certificates of theirs. */
static char dir[] = "/tmp/colo_tls_XXXXXX";

static const char *path_of(const char *name, const char *kind)
{
    static char paths[4][64];
    static unsigned next;
    char *path = paths[next++ % 4];

    snprintf(path, sizeof paths[0], "%s/%s.%s", dir, name, kind);
    return path;
}

static void save(const char *name, X509 *certificate, EVP_PKEY *key)
{
    FILE *f = fopen(path_of(name, "pem"), "w");

    PEM_write_X509(f, certificate);
    fclose(f);
    f = fopen(path_of(name, "key"), "w");
    PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL);
    fclose(f);
}

static void extend(X509 *certificate, int nid, const char *value)
{
    X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, NULL, nid, value);

    X509_add_ext(certificate, e, -1);
    X509_EXTENSION_free(e);
}

/* Valid from `from` to `to` days from now. `issuer` NULL: an authority. */
static X509 *issue(const char *name, EVP_PKEY **key, X509 *issuer, EVP_PKEY *issuer_key, int from, int to)
{
    X509 *x = X509_new();
    char san[80];

    *key = EVP_EC_gen("P-256");
    X509_set_version(x, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(x), 1);
    X509_gmtime_adj(X509_getm_notBefore(x), 86400L * from);
    X509_gmtime_adj(X509_getm_notAfter(x), 86400L * to);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0);
    X509_set_issuer_name(x, X509_get_subject_name(issuer ? issuer : x));
    X509_set_pubkey(x, *key);
    snprintf(san, sizeof san, "DNS:%s", name);
    if (issuer)
        extend(x, NID_subject_alt_name, san);
    else
        extend(x, NID_basic_constraints, "critical,CA:TRUE");
    X509_sign(x, issuer_key ? issuer_key : *key, EVP_sha256());
    save(name, x, *key);
    return x;
}

static void make_certificates(void)
{
    static const struct {
        const char *name;
        bool bad;
        int from, to;
    } rows[] = {{"one", false, -1, 2}, {"two", false, -1, 2}, {"old", false, -3, -1}, {"early", false, 1, 3},
                {"strange", true, -1, 2}};
    EVP_PKEY *keys[2], *key;
    X509 *authorities[2] = {issue("ca", &keys[0], NULL, NULL, -5, 5), issue("bad", &keys[1], NULL, NULL, -5, 5)};

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        X509_free(issue(rows[i].name, &key, authorities[rows[i].bad], keys[rows[i].bad], rows[i].from, rows[i].to));
        EVP_PKEY_free(key);
    }
    for (int i = 0; i < 2; i++) {
        X509_free(authorities[i]);
        EVP_PKEY_free(keys[i]);
    }
}

static void forget_certificates(void)
{
    static const char *const names[] = {"ca", "bad", "one", "two", "old", "early", "strange"};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        unlink(path_of(names[i], "pem"));
        unlink(path_of(names[i], "key"));
    }
    rmdir(dir);
    memcpy(dir + sizeof dir - 7, "XXXXXX", 6);
}

static colo_tls *certificates(bool server, const char *name, const char *ca, const char *peer)
{
    char text[200] = "";
    colo_tls *tls = colo_tls_certificates(server, path_of(name, "pem"), path_of(name, "key"), path_of(ca, "pem"), peer,
                                          text, sizeof text);

    CHECK(tls != NULL);
    CHECK_STR(text, "");
    return tls;
}

static void test_certificates(void)
{
    /* The client's verdict comes in its handshake; the server's only afterwards, with its first read (RFC 8446 2). */
    static const struct {
        const char *client, *client_ca, *client_wants, *server, *server_ca, *server_wants;
        const char *client_error, *server_error; /* "": none */
    } rows[] = {
        {"one", "ca", NULL, "two", "ca", NULL, "", ""},
        {"one", "ca", "two", "two", "ca", "one", "", ""},
        {"old", "ca", NULL, "two", "ca", NULL, "the peer refuses this side's certificate: expired, or not valid yet",
         "the peer's certificate expired /CN=old"},
        {"early", "ca", NULL, "two", "ca", NULL, "the peer refuses this side's certificate as bad",
         "the peer's certificate is not valid yet /CN=early"},
        {"one", "ca", NULL, "old", "ca", NULL, "the peer's certificate expired /CN=old",
         "the peer refuses this side's certificate: expired, or not valid yet"},
        {"strange", "ca", NULL, "two", "ca", NULL, "the peer refuses this side's certificate: of another authority",
         "the peer's certificate is of another authority /CN=strange"},
        {"one", "ca", NULL, "strange", "ca", NULL, "the peer's certificate is of another authority /CN=strange",
         "the peer refuses this side's certificate: of another authority"},
        {"one", "ca", "three", "two", "ca", NULL, "the peer's certificate is of another name /CN=two",
         "the peer refuses this side's certificate as bad"},
        {"one", "ca", NULL, "two", "ca", "three", "the peer refuses this side's certificate as bad",
         "the peer's certificate is of another name /CN=one"},
    };

    REQUIRE(mkdtemp(dir));
    make_certificates();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct two t = join(certificates(false, rows[i].client, rows[i].client_ca, rows[i].client_wants),
                            certificates(true, rows[i].server, rows[i].server_ca, rows[i].server_wants));
        uint8_t byte;

        shake(&t);
        if (!t.client_result)
            t.client_result = (int)colo_transport_read(t.client, &byte, 1);
        CHECK_NOTE("row %zu", i);
        CHECK_EQ(t.client_result, rows[i].client_error[0] ? COLO_ERR_SYSTEM : COLO_TRANSPORT_READ);
        CHECK_EQ(t.server_result, rows[i].server_error[0] ? COLO_ERR_SYSTEM : 0);
        CHECK_STR(colo_transport_error(t.client), rows[i].client_error);
        CHECK_STR(colo_transport_error(t.server), rows[i].server_error);
        if (!rows[i].client_error[0]) {
            CHECK_STR(colo_transport_peer(t.client), "/CN=two");
            CHECK_STR(colo_transport_peer(t.server), "/CN=one");
            check_carries(t.client, t.server);
        }
        part(&t);
    }
    forget_certificates();
}

/* One side with a PSK, the other with certificates; a client without a certificate; files that don't fit. */
static void test_mixed_keys(void)
{
    struct two t;
    char text[200];

    REQUIRE(mkdtemp(dir));
    make_certificates();
    t = join(psk(false, "pair", KEY), certificates(true, "two", "ca", NULL));
    shake(&t);
    CHECK_STR(colo_transport_error(t.client), "the peer uses certificates, this side a pre-shared key");
    CHECK_EQ(t.server_result, COLO_ERR_SYSTEM);
    part(&t);
    t = join(certificates(false, "one", "ca", NULL), psk(true, "pair", KEY));
    shake(&t);
    CHECK_STR(colo_transport_error(t.client), "the peer has no certificate that fits: a pre-shared key?");
    CHECK_STR(colo_transport_error(t.server), "the peer offers no pre-shared key that fits");
    part(&t);
    raw_client(SSL_CTX_new(TLS_client_method()), certificates(true, "two", "ca", NULL), "the peer shows no certificate",
               0);
    CHECK(!colo_tls_certificates(true, path_of("one", "pem"), path_of("two", "key"), path_of("ca", "pem"), NULL, text,
                                 sizeof text));
    CHECK_NOTE("%.100s", text);
    CHECK(strstr(text, "private key") != NULL);
    CHECK(!colo_tls_certificates(true, path_of("one", "pem"), path_of("one", "key"), path_of("one", "key"), NULL, text,
                                 sizeof text));
    CHECK(strstr(text, "authority") == text);
    forget_certificates();
}

enum { THREADS = 4, SHAKES = 25 };

static void *shake_many(void *keys)
{
    colo_tls *const *both = keys;
    uintptr_t done = 0;

    for (int i = 0; i < SHAKES; i++) {
        struct two t = {.client_result = COLO_TRANSPORT_READ, .server_result = COLO_TRANSPORT_READ};
        int fds[2];

        if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0)
            break;
        t.client = colo_transport_create(both[0], fds[0]);
        t.server = colo_transport_create(both[1], fds[1]);
        shake(&t);
        done += !t.client_result && !t.server_result;
        part(&t);
    }
    return (void *)done; /* the checks are the main thread's */
}

/* One pair of keys serves connections of many threads at once. */
static void test_threads_share_keys(void)
{
    colo_tls *keys[2] = {psk(false, "pair", KEY), psk(true, "pair", KEY)};
    pthread_t threads[THREADS];

    for (int i = 0; i < THREADS; i++)
        REQUIRE(pthread_create(&threads[i], NULL, shake_many, keys) == 0);
    for (int i = 0; i < THREADS; i++) {
        void *done;

        pthread_join(threads[i], &done);
        CHECK_EQ((uintptr_t)done, SHAKES);
    }
    colo_tls_destroy(keys[0]);
    colo_tls_destroy(keys[1]);
}

/* What a stranger has recorded of a good handshake proves nothing in a second one. */
static void test_replayed_handshake(void)
{
    static uint8_t recorded[2][16384];
    ssize_t len[2] = {0, 0};
    struct two t;
    colo_tls *keys = psk(true, "pair", KEY);
    colo_transport *server;
    int fds[2], client_pipe[2], server_pipe[2];
    char drain[4096];

    /* client <-> us <-> server */
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, client_pipe) == 0);
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, server_pipe) == 0);
    t = (struct two){psk(false, "pair", KEY), psk(true, "pair", KEY), NULL, NULL, 0, 0};
    t.client = colo_transport_create(t.client_keys, client_pipe[0]);
    t.server = colo_transport_create(t.server_keys, server_pipe[0]);
    CHECK_EQ(colo_transport_handshake(t.client), COLO_TRANSPORT_READ);
    for (int i = 0; i < 2; i++) {
        ssize_t n;

        len[i] = read(client_pipe[1], recorded[i], sizeof recorded[i]);
        REQUIRE(len[i] > 0);
        CHECK_EQ(write(server_pipe[1], recorded[i], (size_t)len[i]), len[i]);
        CHECK_EQ(colo_transport_handshake(t.server), i ? 0 : COLO_TRANSPORT_READ);
        n = read(server_pipe[1], drain, sizeof drain);
        if (i == 0) {
            REQUIRE(n > 0);
            CHECK_EQ(write(client_pipe[1], drain, (size_t)n), n);
            CHECK_EQ(colo_transport_handshake(t.client), 0);
        }
    }
    part(&t);
    close(client_pipe[1]);
    close(server_pipe[1]);
    /* the same bytes to the next server with that key */
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0);
    server = colo_transport_create(keys, fds[0]);
    CHECK_EQ(write(fds[1], recorded[0], (size_t)len[0]), len[0]);
    CHECK_EQ(colo_transport_handshake(server), COLO_TRANSPORT_READ);
    CHECK_EQ(write(fds[1], recorded[1], (size_t)len[1]), len[1]);
    CHECK_EQ(colo_transport_handshake(server), COLO_ERR_SYSTEM);
    CHECK_STR(colo_transport_error(server), "TLS: decryption failed or bad record mac");
    colo_transport_destroy(server);
    close(fds[1]);
    colo_tls_destroy(keys);
}

CHECK_MAIN(
    TEST(test_psk),
    TEST(test_psk_refused),
    TEST(test_keys_without_sense),
    TEST(test_strangers),
    TEST(test_other_clients),
    TEST(test_plain),
    TEST(test_much_data),
    TEST(test_pending),
    TEST(test_ends),
    TEST(test_certificates),
    TEST(test_mixed_keys),
    TEST(test_threads_share_keys),
    TEST(test_replayed_handshake),
)
