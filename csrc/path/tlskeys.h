/* SPDX-License-Identifier: Apache-2.0 */
/* tlskeys.h - what a colo_tls holds: the settings and secrets that all of its connections share. */
#ifndef COLO_TLSKEYS_H
#define COLO_TLSKEYS_H

#include <stdatomic.h>

#include <openssl/ssl.h>

#include "tls.h"

struct colo_tls {
    atomic_uint holders; /* its creator, and each transport: a change of keys leaves connections alone */
    SSL_CTX *ctx;
    BIO_METHOD *bio_method;
    bool server;
    char *identity; /* NULL: certificates */
    uint8_t *key;
    size_t key_len;
};

/* In tls.c: the methods of the BIO that a transport reads and writes through; NULL: no memory. */
BIO_METHOD *colo_tls_bio_method(void);

/* One holder more, who will call colo_tls_destroy. */
void colo_tls_hold(colo_tls *tls);

#endif
