/* SPDX-License-Identifier: Apache-2.0 */
/* config.c - what may be asked of a generator. */
#include "coloproxy.h"
#include "traffic.h"
#include "wire.h"

_Static_assert(COLO_TRAFFIC_ERR_NOMEM == (int)COLO_ERR_NOMEM && COLO_TRAFFIC_ERR_MISUSE == (int)COLO_ERR_MISUSE &&
                   COLO_TRAFFIC_ERR_SYSTEM == (int)COLO_ERR_SYSTEM,
               "one error convention");

void colo_traffic_config_default(struct colo_traffic_config *config)
{
    *config = (struct colo_traffic_config){
        .flows = 1,
        .length = 1448,
        .burst = 16,
        .turn = 1 << 16,
        .gso_size = 1448,
        .sample_every = 64,
        .loss_delay = 20000000,
        .response_timeout = 5000000000,
        .checkpoint_pause = 10000000,
        .drain = 5000000000,
        .seed = 1,
        .sink = COLO_SINK_VERIFY,
    };
}

int colo_traffic_check(const struct colo_traffic_config *c)
{
    const uint32_t least = c->udp ? COLO_TRAFFIC_MIN_DATAGRAM : 1;
    const bool sizes = c->flows >= 1 && c->flows <= COLO_TRAFFIC_MAX_FLOWS && c->length >= least &&
                       c->length <= COLO_TRAFFIC_MAX_LENGTH && c->recut <= COLO_TRAFFIC_MAX_LENGTH && c->burst >= 1 &&
                       c->burst <= COLO_TRAFFIC_MAX_BURST && c->turn >= 1 && c->turn <= COLO_TRAFFIC_MAX_TURN &&
                       c->gso_size >= 1 && c->gso_size <= UINT16_MAX;
    const bool times = c->rate >= 0 && c->loss_delay >= 0 && c->think_time >= 0 && c->response_timeout > 0 &&
                       c->checkpoint_pause >= 0 && c->drain >= 0;

    if (!sizes || !times || c->sink > COLO_SINK_DISCARD || c->loss_ppm > 1000000 || c->divergence_ppm > 1000000)
        return COLO_ERR_MISUSE;
    if (c->udp && ((c->recut && c->recut != c->length) || c->timestamps || c->loss_ppm))
        return COLO_ERR_MISUSE;
    if (c->udp && c->divergence_ppm && c->length < COLO_TRAFFIC_MIN_DATAGRAM + 2)
        return COLO_ERR_MISUSE; /* its number must stay right */
    if (c->request_response && (c->sink != COLO_SINK_VERIFY || c->burst != 1 || c->skew))
        return COLO_ERR_MISUSE;
    return 0;
}
