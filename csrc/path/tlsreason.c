/* SPDX-License-Identifier: Apache-2.0 */
#include "tlsreason.h"

#include <stdio.h>

#include <openssl/err.h>
#include <openssl/x509_vfy.h>

#include "tlskeys.h"

static const char WRONG_KEY[] = "wrong pre-shared key or identity";
static const char OTHER_VERSION[] = "the peer does not speak TLS 1.3";
static const char NO_TLS[] = "the peer does not speak TLS: plain text?";

/* Which of our settings a reason's text belongs to. */
enum { PSK = 1, CERTIFICATES = 2, EITHER = 3 };

struct row {
    int reason;
    int keys;
    const char *text;
};

enum { ALERT = SSL_AD_REASON_OFFSET }; /* OpenSSL's reason for an alert that the peer sent is this plus its number */

static const struct row rows[] = {
    {SSL_R_BINDER_DOES_NOT_VERIFY, PSK, WRONG_KEY},
    {ALERT + SSL_AD_ILLEGAL_PARAMETER, PSK, WRONG_KEY}, /* how OpenSSL says that a binder does not verify */
    {ALERT + SSL_AD_DECRYPT_ERROR, PSK, WRONG_KEY},     /* how RFC 8446 4.2.11 wants it said */
    {ALERT + SSL_AD_HANDSHAKE_FAILURE, PSK, WRONG_KEY}, /* no PSK fits, and there are no certificates */
    {ALERT + SSL_AD_UNKNOWN_PSK_IDENTITY, PSK, WRONG_KEY},
    {SSL_R_CERTIFICATE_VERIFY_FAILED, PSK, "the peer uses certificates, this side a pre-shared key"},
    {SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE, CERTIFICATES, "the peer shows no certificate"},
    {ALERT + SSL_AD_HANDSHAKE_FAILURE, CERTIFICATES, "the peer has no certificate that fits: a pre-shared key?"},
    {ALERT + SSL_AD_BAD_CERTIFICATE, CERTIFICATES, "the peer refuses this side's certificate as bad"},
    {ALERT + SSL_AD_UNSUPPORTED_CERTIFICATE, CERTIFICATES,
     "the peer refuses this side's certificate: wrong kind or use"},
    {ALERT + SSL_AD_CERTIFICATE_REVOKED, CERTIFICATES, "the peer refuses this side's certificate: revoked"},
    {ALERT + SSL_AD_CERTIFICATE_EXPIRED, CERTIFICATES,
     "the peer refuses this side's certificate: expired, or not valid yet"},
    {ALERT + SSL_AD_CERTIFICATE_UNKNOWN, CERTIFICATES, "the peer refuses this side's certificate"},
    {ALERT + SSL_AD_UNKNOWN_CA, CERTIFICATES, "the peer refuses this side's certificate: of another authority"},
    {ALERT + SSL_AD_CERTIFICATE_REQUIRED, CERTIFICATES, "the peer wants a certificate of this side"},
    {ALERT + SSL_AD_PROTOCOL_VERSION, EITHER, OTHER_VERSION},
    {SSL_R_UNSUPPORTED_PROTOCOL, EITHER, OTHER_VERSION},
    {SSL_R_WRONG_SSL_VERSION, EITHER, OTHER_VERSION},
    {SSL_R_VERSION_TOO_LOW, EITHER, OTHER_VERSION},
    {SSL_R_WRONG_VERSION_NUMBER, EITHER, NO_TLS},
    {SSL_R_HTTP_REQUEST, EITHER, NO_TLS},
    {SSL_R_HTTPS_PROXY_REQUEST, EITHER, NO_TLS},
    {SSL_R_UNEXPECTED_EOF_WHILE_READING, EITHER, "the connection was cut"},
};

static void verify_text(const SSL *ssl, char *text, size_t text_len)
{
    const struct colo_tls_clues *clues = SSL_get_app_data(ssl);
    const char *subject = clues->distrusted;
    long result = SSL_get_verify_result(ssl);

    switch (result) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
        snprintf(text, text_len, "the peer's certificate expired %s", subject);
        break;
    case X509_V_ERR_CERT_NOT_YET_VALID:
        snprintf(text, text_len, "the peer's certificate is not valid yet %s", subject);
        break;
    case X509_V_ERR_HOSTNAME_MISMATCH:
        snprintf(text, text_len, "the peer's certificate is of another name %s", subject);
        break;
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
        snprintf(text, text_len, "the peer's certificate is of another authority %s", subject);
        break;
    default:
        snprintf(text, text_len, "the peer's certificate is refused: %s %s", X509_verify_cert_error_string(result),
                 subject);
    }
}

void colo_tls_reason(const colo_tls *tls, const SSL *ssl, bool open, unsigned long code, char *text, size_t text_len)
{
    const struct colo_tls_clues *clues = SSL_get_app_data(ssl);
    int reason = ERR_GET_REASON(code), keys = tls->identity ? PSK : CERTIFICATES;
    const char *words = ERR_reason_error_string(code);

    if (reason == SSL_R_CERTIFICATE_VERIFY_FAILED && keys == CERTIFICATES) {
        verify_text(ssl, text, text_len);
        return;
    }
    /* A server that found no PSK looks for a certificate, has none, and says so in words of its own. */
    if (!open && keys == PSK && tls->server && clues->offer != COLO_TLS_OFFER_KNOWN &&
        (reason == SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM || reason == SSL_R_NO_SHARED_CIPHER ||
         reason == SSL_R_NO_CERTIFICATE_SET)) {
        snprintf(text, text_len, "%s",
                 clues->offer == COLO_TLS_OFFER_UNKNOWN ? WRONG_KEY : "the peer offers no pre-shared key that fits");
        return;
    }
    for (size_t i = 0; ERR_GET_LIB(code) == ERR_LIB_SSL && i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].reason == reason && (rows[i].keys & keys) && !(open && rows[i].keys == PSK)) {
            snprintf(text, text_len, "%s", rows[i].text);
            return;
        }
    snprintf(text, text_len, "TLS: %s", words ? words : "failed without a reason");
}
