/* SPDX-License-Identifier: Apache-2.0 */
/* match.h - which flows a rule of the operator's is about; shared by policies and tolerances. */
#ifndef COLO_MATCH_H
#define COLO_MATCH_H

#include "coloproxy.h"

/* No range is empty, no prefix longer than its address, no unknown field or class. */
bool colo_match_is_sane(const struct colo_match *match);
bool colo_match_fits(const struct colo_match *match, const struct colo_flow_id *id);

#endif
