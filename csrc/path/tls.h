/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tls.h - a connected stream socket with TLS 1.3 on it (OpenSSL), or without.
 *
 * Both sides prove who they are: by one pre-shared key (RFC 8446 4.2.11, with (EC)DHE), or by certificates of one
 * authority. No version below 1.3, no renegotiation, no early data, no tickets. All calls are non-blocking, none raises
 * SIGPIPE. A transport belongs to one thread at a time; a colo_tls may serve many at once.
 */
#ifndef COLO_TLS_H
#define COLO_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coloproxy.h"

/* cffi:begin */

typedef struct colo_tls colo_tls;             /* keys: serves many connections */
typedef struct colo_transport colo_transport; /* one connection */

enum colo_transport_want {
    COLO_TRANSPORT_READ = -16,  /* nothing more until the socket is readable */
    COLO_TRANSPORT_WRITE = -17, /* ... writable */
    COLO_TRANSPORT_CLOSED = -18, /* the peer has closed it in order */
};

/* `key`: 16 bytes at least; `identity`: a text that names it. NULL: no memory, or they make no sense; text says why. */
colo_tls *colo_tls_psk(bool server, const char *identity, const uint8_t *key, size_t key_len, char *text,
                       size_t text_len);
/* PEM files. The peer's certificate must be signed by `ca` and, if `peer_name` is not NULL, be of that DNS name. */
colo_tls *colo_tls_certificates(bool server, const char *certificate, const char *key, const char *ca,
                                const char *peer_name, char *text, size_t text_len);
void colo_tls_destroy(colo_tls *tls); /* its transports live on */

/* `tls` NULL: plain text. Owns the fd (made non-blocking) from now on, not on failure. */
colo_transport *colo_transport_create(colo_tls *tls, int fd);
/* 0: done; COLO_TRANSPORT_READ or _WRITE: wait for that; else negative: refused, colo_transport_error says why. */
int colo_transport_handshake(colo_transport *t);
/*
 * Bytes moved (> 0), a colo_transport_want, or COLO_ERR_SYSTEM (colo_transport_error). After WRITE, or less than asked,
 * the same data again (its rest), and more behind it if there is.
 */
long colo_transport_read(colo_transport *t, uint8_t *data, size_t len);
long colo_transport_write(colo_transport *t, const uint8_t *data, size_t len);
/* Whether decrypted bytes wait that no poll of the socket will tell of. */
bool colo_transport_pending(const colo_transport *t);
int colo_transport_fd(const colo_transport *t);
/* Who the peer is: the PSK's identity, or its certificate's subject; "" in plain text. */
const char *colo_transport_peer(const colo_transport *t);
/* e.g. "TLSv1.3 TLS_AES_128_GCM_SHA256", or "plain text" */
const char *colo_transport_cipher(const colo_transport *t);
const char *colo_transport_error(const colo_transport *t); /* "" if there was none */
void colo_transport_destroy(colo_transport *t); /* says goodbye if that doesn't block, and closes the socket */

/* cffi:end */

#endif
