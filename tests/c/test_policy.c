/* SPDX-License-Identifier: Apache-2.0 */
/* match.c and policy.c. */
#include <stdlib.h>

#include "check.h"
#include "match.h"
#include "policy.h"

static struct colo_flow_id udp4(uint16_t sport, uint8_t last)
{
    return (struct colo_flow_id){.family = 4, .protocol = 17, .cls = COLO_CLASS_UDP, .sport = sport, .dport = 9,
                                 .src = {10, 0, 0, 1}, .dst = {10, 0, 0, last}};
}

static void test_prefixes(void)
{
    struct colo_match m = {.has = COLO_MATCH_CLIENT, .client = {4, 32, {10, 0, 0, 0x81}}};
    struct colo_flow_id id = udp4(1, 0x80);

    for (uint8_t bits = 0; bits <= 32; bits++) { /* the addresses differ in bit 32 alone */
        m.client.bits = bits;
        CHECK(colo_match_is_sane(&m));
        CHECK_EQ(colo_match_fits(&m, &id), bits < 32);
    }
    id.dst[0] = 138; /* and in the first */
    for (uint8_t bits = 0; bits <= 32; bits++) {
        m.client.bits = bits;
        CHECK_EQ(colo_match_fits(&m, &id), bits == 0);
    }
    m.client.bits = 33;
    CHECK(!colo_match_is_sane(&m));
    m.client = (struct colo_prefix){6, 128, {10, 0, 0, 0x80}};
    CHECK(colo_match_is_sane(&m));
    CHECK(!colo_match_fits(&m, &id)); /* another family */
    id.family = 6;
    id.dst[0] = 10;
    CHECK(colo_match_fits(&m, &id));
    m.client.bits = 129;
    CHECK(!colo_match_is_sane(&m));
    m.client.family = 0;
    CHECK(!colo_match_is_sane(&m));
}

static void test_fields(void)
{
    struct colo_flow_id id = udp4(80, 2);
    struct colo_match m = {.has = 0};

    CHECK(colo_match_is_sane(&m));
    CHECK(colo_match_fits(&m, &id));
    m = (struct colo_match){.has = COLO_MATCH_CLASS, .classes = 1u << COLO_CLASS_TCP};
    CHECK(!colo_match_fits(&m, &id));
    m.classes |= 1u << COLO_CLASS_UDP;
    CHECK(colo_match_fits(&m, &id));
    m.classes = 1u << COLO_CLASS_COUNT;
    CHECK(!colo_match_is_sane(&m));
    m = (struct colo_match){.has = COLO_MATCH_VM_PORT, .vm_port = {80, 80}};
    CHECK(colo_match_fits(&m, &id));
    id.cls = COLO_CLASS_ICMP;
    CHECK(!colo_match_fits(&m, &id));
    m = (struct colo_match){.has = COLO_MATCH_VLAN, .vlan = 0};
    CHECK(!colo_match_fits(&m, &id)); /* untagged is not VLAN 0 */
    id.vlan_count = 2;
    id.vlan[0] = 5;
    CHECK(colo_match_fits(&m, &id));
    m.vlan = 4096;
    CHECK(!colo_match_is_sane(&m));
    m = (struct colo_match){.has = 128};
    CHECK(!colo_match_is_sane(&m));
}

static void test_first_rule_decides(void)
{
    struct colo_rule rules[] = {
        {{.has = COLO_MATCH_VM_PORT, .vm_port = {53, 53}}, COLO_POLICY_PASS},
        {{.has = COLO_MATCH_VM_PORT, .vm_port = {50, 59}}, COLO_POLICY_DROP_SECONDARY},
    };
    struct colo_policies *p = colo_policies_create(rules, 2, 7);

    if (!CHECK(p != NULL))
        return;
    rules[0].action = COLO_POLICY_COMPARE; /* it has its own copy */
    for (int round = 0; round < 2; round++) /* the second from what is remembered, as far as there is room */
        for (uint16_t port = 0; port < 3000; port++) {
            struct colo_flow_id id = udp4(port, 2);
            uint8_t expected = port == 53                 ? COLO_POLICY_PASS
                               : port >= 50 && port <= 59 ? COLO_POLICY_DROP_SECONDARY
                                                          : (uint8_t)(round ? COLO_POLICY_PASS : COLO_POLICY_COMPARE);

            CHECK_EQ(colo_policies_find(p, &id, (uint8_t)(round ? COLO_POLICY_PASS : COLO_POLICY_COMPARE)), expected);
        }
    colo_policies_destroy(p);
    colo_policies_destroy(NULL);
}

static void test_create_refuses(void)
{
    static struct colo_rule rules[COLO_MAX_RULES + 1];
    struct colo_config config;
    colo_comparator *c;

    colo_config_default(&config);
    config.rules = rules;
    config.rules_count = COLO_MAX_RULES + 1;
    CHECK(colo_comparator_create(&config) == NULL);
    config.rules_count = COLO_MAX_RULES;
    c = colo_comparator_create(&config);
    CHECK(c != NULL);
    colo_comparator_destroy(c);
    rules[COLO_MAX_RULES - 1].action = COLO_POLICY_COUNT;
    CHECK(colo_comparator_create(&config) == NULL);
    config.rules = NULL;
    CHECK(colo_comparator_create(&config) == NULL);
}

CHECK_MAIN(TEST(test_prefixes), TEST(test_fields), TEST(test_first_rule_decides), TEST(test_create_refuses), )
