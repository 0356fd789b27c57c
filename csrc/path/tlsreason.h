/* SPDX-License-Identifier: Apache-2.0 */
/* tlsreason.h - a refused handshake in words that tell an operator what to mend. */
#ifndef COLO_TLSREASON_H
#define COLO_TLSREASON_H

#include <openssl/ssl.h>

#include "tls.h"

enum colo_tls_offer {
    COLO_TLS_OFFER_NONE = 0, /* the client offered no PSK, as far as is known */
    COLO_TLS_OFFER_KNOWN,
    COLO_TLS_OFFER_UNKNOWN,  /* of another identity */
};

/* What a handshake's callbacks have seen; the SSL's app data. */
struct colo_tls_clues {
    int offer;           /* server: enum colo_tls_offer */
    char distrusted[160]; /* the subject of the certificate that was refused */
};

/* `open`: after the handshake; `code`: of OpenSSL's error queue, 0 if there was none. */
void colo_tls_reason(const colo_tls *tls, const SSL *ssl, bool open, unsigned long code, char *text, size_t text_len);

#endif
