/* SPDX-License-Identifier: Apache-2.0 */
#include "tls.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/ssl.h>

#include "tlskeys.h"
#include "tlsreason.h"

enum {
    TLS_ALERT = 0x15, /* types of TLS records, RFC 8446 5.1 */
    TLS_HANDSHAKE = 0x16,
};

struct colo_transport {
    colo_tls *tls; /* NULL: plain text */
    SSL *ssl;
    int fd;
    bool seen;    /* the peer's first byte was one of TLS's */
    bool open;    /* the handshake is done */
    bool failed;  /* no goodbye: OpenSSL forbids it after a fatal error */
    bool eof;
    int sys;      /* errno of a send or recv that failed, 0: none */
    bool starved; /* the last read found nothing whole: what may be buffered is half a TLS record */
    struct colo_tls_clues clues;
    char peer[256];
    char cipher[64];
    char error[256];
};

__attribute__((format(printf, 3, 4))) static long fail(colo_transport *t, int code, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    vsnprintf(t->error, sizeof t->error, format, ap);
    va_end(ap);
    t->failed = true;
    return code;
}

/* ----------------------------------------------------------- OpenSSL's view of our socket */

/* send() and recv() instead of OpenSSL's own socket BIO, which writes with write(): a peer that is gone must not raise
 * SIGPIPE in a process that is not ours alone. */
static int bio_write(BIO *bio, const char *data, int len)
{
    colo_transport *t = BIO_get_data(bio);
    ssize_t n = send(t->fd, data, (size_t)len, MSG_NOSIGNAL);

    BIO_clear_retry_flags(bio);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        BIO_set_retry_write(bio);
    else if (n < 0)
        t->sys = errno;
    return (int)n;
}

static int bio_read(BIO *bio, char *data, int len)
{
    colo_transport *t = BIO_get_data(bio);
    ssize_t n = recv(t->fd, data, (size_t)len, 0);

    BIO_clear_retry_flags(bio);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        BIO_set_retry_read(bio);
    else if (n < 0)
        t->sys = errno;
    if (n == 0)
        t->eof = true;
    return (int)n;
}

static long bio_ctrl(BIO *bio, int command, long number, void *pointer)
{
    const colo_transport *t = BIO_get_data(bio);

    (void)number;
    (void)pointer;
    if (command == BIO_CTRL_FLUSH)
        return 1;
    return command == BIO_CTRL_EOF && t->eof;
}

BIO_METHOD *colo_tls_bio_method(void)
{
    BIO_METHOD *method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "coloproxy socket");

    if (!method || !BIO_meth_set_write(method, bio_write) || !BIO_meth_set_read(method, bio_read) ||
        !BIO_meth_set_ctrl(method, bio_ctrl)) {
        BIO_meth_free(method);
        return NULL;
    }
    return method;
}

/* -------------------------------------------------------------------- life */

static bool make_ready(int fd)
{
    int flags = fcntl(fd, F_GETFL), one = 1;

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return false;
    /* Refused by sockets that are not TCP, which have no Nagle to wait for either. */
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return true;
}

static bool make_ssl(colo_transport *t)
{
    BIO *bio;

    t->ssl = SSL_new(t->tls->ctx);
    if (!t->ssl)
        return false;
    bio = BIO_new(t->tls->bio_method);
    if (!bio)
        return false;
    BIO_set_data(bio, t);
    BIO_set_init(bio, 1);
    SSL_set_bio(t->ssl, bio, bio);
    SSL_set_app_data(t->ssl, &t->clues);
    if (t->tls->server)
        SSL_set_accept_state(t->ssl);
    else
        SSL_set_connect_state(t->ssl);
    return true;
}

colo_transport *colo_transport_create(colo_tls *tls, int fd)
{
    colo_transport *t = calloc(1, sizeof *t);

    if (!t)
        return NULL;
    t->tls = tls;
    t->fd = fd;
    if (!make_ready(fd) || (tls && !make_ssl(t))) {
        ERR_clear_error();
        SSL_free(t->ssl);
        free(t);
        return NULL;
    }
    t->open = !tls;
    if (tls)
        colo_tls_hold(tls);
    snprintf(t->cipher, sizeof t->cipher, "%s", tls ? "" : "plain text");
    return t;
}

void colo_transport_destroy(colo_transport *t)
{
    if (!t)
        return;
    if (t->ssl && t->open && !t->failed) {
        ERR_clear_error();
        (void)SSL_shutdown(t->ssl);
        ERR_clear_error();
    }
    SSL_free(t->ssl);
    close(t->fd);
    colo_tls_destroy(t->tls);
    free(t);
}

/* --------------------------------------------------------------- handshake */

/* Turns what OpenSSL says into one of our results, with a text where it is a failure. */
static long result_of(colo_transport *t, int n)
{
    unsigned long code = ERR_peek_error();
    char text[sizeof t->error];

    switch (SSL_get_error(t->ssl, n)) {
    case SSL_ERROR_WANT_READ:
        return COLO_TRANSPORT_READ;
    case SSL_ERROR_WANT_WRITE:
        return COLO_TRANSPORT_WRITE;
    case SSL_ERROR_ZERO_RETURN:
        return COLO_TRANSPORT_CLOSED;
    case SSL_ERROR_SYSCALL:
        errno = t->sys ? t->sys : EPROTO;
        return fail(t, COLO_ERR_SYSTEM, "%s", t->sys ? strerror(t->sys) : "the connection was cut");
    default:
        break;
    }
    colo_tls_reason(t->tls, t->ssl, t->open, code, text, sizeof text);
    ERR_clear_error();
    errno = EPROTO;
    return fail(t, COLO_ERR_SYSTEM, "%s", text);
}

/* OpenSSL's words for a peer without TLS depend on what its bytes happen to look like: see for ourselves. */
static int look_at_first_byte(colo_transport *t)
{
    uint8_t first;
    ssize_t n;

    if (t->seen)
        return 0;
    n = recv(t->fd, &first, 1, MSG_PEEK);
    if (n != 1)
        return 0; /* the handshake will find out why */
    if (first != TLS_HANDSHAKE && (t->tls->server || first != TLS_ALERT)) {
        errno = EPROTO;
        return (int)fail(t, COLO_ERR_SYSTEM, "the peer does not speak TLS: plain text?");
    }
    t->seen = true;
    return 0;
}

static void name_peer(colo_transport *t)
{
    X509 *certificate;

    snprintf(t->cipher, sizeof t->cipher, "%s %s", SSL_get_version(t->ssl), SSL_get_cipher_name(t->ssl));
    if (t->tls->identity) {
        snprintf(t->peer, sizeof t->peer, "%s", t->tls->identity);
        return;
    }
    certificate = SSL_get1_peer_certificate(t->ssl);
    if (certificate)
        X509_NAME_oneline(X509_get_subject_name(certificate), t->peer, (int)sizeof t->peer);
    X509_free(certificate);
}

/* What the contexts' settings promise, looked at once more: a mistake there must not let a stranger in. */
static bool proven(const colo_transport *t)
{
    X509 *certificate;
    bool has;

    if (SSL_version(t->ssl) != TLS1_3_VERSION)
        return false;
    if (t->tls->identity)
        return SSL_session_reused(t->ssl) == 1;
    certificate = SSL_get1_peer_certificate(t->ssl);
    has = certificate != NULL;
    X509_free(certificate);
    return has && SSL_get_verify_result(t->ssl) == X509_V_OK;
}

int colo_transport_handshake(colo_transport *t)
{
    int n;

    if (t->failed)
        return COLO_ERR_SYSTEM;
    if (t->open)
        return 0;
    if (look_at_first_byte(t) < 0)
        return COLO_ERR_SYSTEM;
    ERR_clear_error();
    n = SSL_do_handshake(t->ssl);
    if (n != 1) {
        long result = result_of(t, n);

        return result == COLO_TRANSPORT_CLOSED ? (int)fail(t, COLO_ERR_SYSTEM, "the peer closed in the handshake")
                                               : (int)result;
    }
    if (!proven(t)) {
        errno = EPROTO;
        return (int)fail(t, COLO_ERR_SYSTEM, "the peer did not prove who it is");
    }
    t->open = true;
    name_peer(t);
    return 0;
}

/* -------------------------------------------------------------------- data */

static long plain_result(colo_transport *t, long want)
{
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)
        return want;
    return fail(t, COLO_ERR_SYSTEM, "%s", strerror(errno));
}

static long plain_read(colo_transport *t, uint8_t *data, size_t len)
{
    ssize_t n = recv(t->fd, data, len, 0);

    if (n == 0)
        return COLO_TRANSPORT_CLOSED;
    return n > 0 ? n : plain_result(t, COLO_TRANSPORT_READ);
}

static long plain_write(colo_transport *t, const uint8_t *data, size_t len)
{
    ssize_t n = send(t->fd, data, len, MSG_NOSIGNAL);

    return n > 0 ? n : plain_result(t, COLO_TRANSPORT_WRITE);
}

long colo_transport_read(colo_transport *t, uint8_t *data, size_t len)
{
    size_t all = 0, n;

    if (!t->open || !len)
        return COLO_ERR_MISUSE;
    if (t->failed)
        return COLO_ERR_SYSTEM;
    if (!t->ssl)
        return plain_read(t, data, len);
    ERR_clear_error();
    t->starved = false;
    while (all < len) { /* a TLS record is 16 KiB at most: several make one batch */
        int ok = SSL_read_ex(t->ssl, data + all, len - all, &n);
        long result;

        if (ok) {
            all += n;
            continue;
        }
        result = result_of(t, ok);
        t->starved = result == COLO_TRANSPORT_READ;
        /* An end behind the bytes is met again by the next call. */
        return all ? (long)all : result;
    }
    return (long)all;
}

long colo_transport_write(colo_transport *t, const uint8_t *data, size_t len)
{
    size_t all = 0, n;

    if (!t->open || !len)
        return COLO_ERR_MISUSE;
    if (t->failed)
        return COLO_ERR_SYSTEM;
    if (!t->ssl)
        return plain_write(t, data, len);
    ERR_clear_error();
    while (all < len) {
        int ok = SSL_write_ex(t->ssl, data + all, len - all, &n);

        if (!ok) {
            long result = result_of(t, ok);

            return all ? (long)all : result;
        }
        all += n;
    }
    return (long)all;
}

bool colo_transport_pending(const colo_transport *t)
{
    return t->ssl && !t->starved && !t->failed && SSL_has_pending(t->ssl);
}

int colo_transport_fd(const colo_transport *t)
{
    return t->fd;
}

const char *colo_transport_peer(const colo_transport *t)
{
    return t->peer;
}

const char *colo_transport_cipher(const colo_transport *t)
{
    return t->cipher;
}

const char *colo_transport_error(const colo_transport *t)
{
    return t->error;
}
