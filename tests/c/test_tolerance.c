/* SPDX-License-Identifier: Apache-2.0 */
/* tolerance.c: the automaton against a search by hand, states, and what may not be configured. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "tolerance.h"

static struct colo_tolerance_rule rule(const char *after, uint16_t length)
{
    struct colo_tolerance_rule r = {.length = length, .after_len = (uint8_t)strlen(after)};

    memcpy(r.after, after, r.after_len);
    return r;
}

static uint64_t rng = 7;

static uint32_t roll(uint32_t n)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng >> 33) % n;
}

/* The same by hand: the text is looked for at every byte. */
static uint32_t by_hand(const struct colo_tolerance_rule *rules, uint32_t count, const uint8_t *p, const uint8_t *s,
                        uint32_t n)
{
    uint32_t from = 0, i = 0; /* a text may begin at `from` */

    while (i < n) {
        uint32_t r = 0;

        if (p[i] != s[i])
            return i;
        i++;
        while (r < count && !(i - from >= rules[r].after_len &&
                              memcmp(p + i - rules[r].after_len, rules[r].after, rules[r].after_len) == 0))
            r++;
        if (r == count)
            continue;
        for (uint32_t left = rules[r].length; left && i < n; left--, i++)
            if (p[i] < 0x20 || s[i] < 0x20 || p[i] > 0x7e || s[i] > 0x7e ||
                (rules[r].has_until && (p[i] == rules[r].until || s[i] == rules[r].until)))
                break;
        from = i;
    }
    return n;
}

/* Texts of two letters, so that they overlap in every way; bytes that differ only now and then. */
static void test_against_a_search_by_hand(void)
{
    struct colo_flow_id id = {.family = 4, .cls = COLO_CLASS_TCP};
    uint32_t whole = 0, parted = 0;

    for (int round = 0; round < 20000; round++) {
        struct colo_tolerance_rule rules[4];
        uint32_t count = 1 + roll(4), n = roll(60), cut = n ? roll(n) : 0, expected, got;
        struct colo_tolerances *t;
        struct colo_tolerance *state;
        uint8_t p[60], s[60];

        for (uint32_t r = 0; r < count; r++) {
            rules[r] = (struct colo_tolerance_rule){.length = (uint16_t)(1 + roll(12)), .after_len = (uint8_t)(4 + roll(3)),
                                                    .has_until = (uint8_t)(roll(4) == 0), .until = 'b'};
            for (int i = 0; i < rules[r].after_len; i++)
                rules[r].after[i] = (uint8_t)('a' + roll(2));
        }
        for (uint32_t i = 0; i < n; i++) {
            p[i] = s[i] = (uint8_t)(roll(20) ? 'a' + roll(2) : 'a' + roll(26));
            if (roll(15) == 0)
                s[i] = (uint8_t)roll(128);
        }
        REQUIRE(colo_tolerances_are_sane(rules, count));
        t = colo_tolerances_create(rules, count, 4);
        REQUIRE(t);
        colo_tolerances_begin(t, 3, &id);
        state = colo_tolerances_of(t, 3);
        REQUIRE(state);
        expected = by_hand(rules, count, p, s, n);
        colo_tolerance_seek(state, 9, 1000);
        got = colo_tolerance_compare(t, state, p, s, cut, NULL, NULL); /* in two pieces */
        if (got == cut)
            got += colo_tolerance_compare(t, state, p + cut, s + cut, n - cut, NULL, NULL);
        CHECK_EQ(got, expected);
        CHECK_EQ(state->at, 1000 + (int64_t)got);
        whole += got == n && memcmp(p, s, n) != 0;
        parted += got < n;
        colo_tolerances_destroy(t);
    }
    CHECK(whole > 500);
    CHECK(parted > 500);
}

static void count_tell(void *context, uint8_t r, uint32_t index)
{
    uint32_t *seen = context;

    seen[0]++;
    seen[1] = r;
    seen[2] = index;
}

static void test_states(void)
{
    struct colo_tolerance_rule rules[2] = {rule("other", 1), rule("time=", 3)};
    struct colo_flow_id tcp = {.family = 4, .cls = COLO_CLASS_TCP}, udp = {.family = 4, .cls = COLO_CLASS_UDP};
    struct colo_tolerances *t;
    struct colo_tolerance *state;
    uint32_t seen[3] = {0};

    rules[0].match = rules[1].match = (struct colo_match){.has = COLO_MATCH_CLASS, .classes = 1u << COLO_CLASS_TCP};
    t = colo_tolerances_create(rules, 2, 8);
    REQUIRE(t);
    CHECK(colo_tolerances_of(t, 5) == NULL);
    colo_tolerances_begin(t, 5, &udp);
    CHECK(colo_tolerances_of(t, 5) == NULL);
    colo_tolerances_begin(t, 5, &tcp);
    state = colo_tolerances_of(t, 5);
    if (!CHECK(state != NULL))
        return;
    colo_tolerance_seek(state, 1, 100);
    CHECK_EQ(colo_tolerance_compare(t, state, (const uint8_t *)"time=1", (const uint8_t *)"time=2", 6, count_tell, seen), 6);
    CHECK_EQ(seen[0], 1);
    CHECK_EQ(seen[1], 1);
    CHECK_EQ(seen[2], 5);
    colo_tolerance_seek(state, 1, 106); /* where it stands: the window is still open, and was told of */
    CHECK_EQ(colo_tolerance_compare(t, state, (const uint8_t *)"3", (const uint8_t *)"4", 1, count_tell, seen), 1);
    CHECK_EQ(seen[0], 1);
    colo_tolerance_seek(state, 1, 108); /* a byte was not seen */
    CHECK_EQ(colo_tolerance_compare(t, state, (const uint8_t *)"3", (const uint8_t *)"4", 1, NULL, NULL), 0);
    colo_tolerance_seek(state, 1, 0);
    CHECK_EQ(colo_tolerance_compare(t, state, (const uint8_t *)"time=", (const uint8_t *)"time=", 5, NULL, NULL), 5);
    colo_tolerance_seek(state, 2, 5); /* another connection */
    CHECK_EQ(colo_tolerance_compare(t, state, (const uint8_t *)"3", (const uint8_t *)"4", 1, NULL, NULL), 0);
    colo_tolerances_begin(t, 5, &udp); /* another flow at the same index */
    CHECK(colo_tolerances_of(t, 5) == NULL);
    colo_tolerances_destroy(t);
    colo_tolerances_destroy(NULL);
}

static void test_the_largest(void)
{
    static struct colo_tolerance_rule rules[COLO_MAX_TOLERANCES + 1];
    struct colo_flow_id id = {.family = 4};
    struct colo_tolerances *t;
    uint8_t text[64 + COLO_MAX_TOLERATED + 1], other[sizeof text];

    for (uint32_t r = 0; r <= COLO_MAX_TOLERANCES; r++) {
        rules[r] = (struct colo_tolerance_rule){.length = COLO_MAX_TOLERATED, .after_len = 64};
        memset(rules[r].after, ' ' + (int)r, 64);
    }
    CHECK(!colo_tolerances_are_sane(rules, COLO_MAX_TOLERANCES + 1));
    CHECK(colo_tolerances_are_sane(rules, COLO_MAX_TOLERANCES));
    t = colo_tolerances_create(rules, COLO_MAX_TOLERANCES, 1);
    REQUIRE(t);
    colo_tolerances_begin(t, 0, &id);
    memset(text, ' ' + COLO_MAX_TOLERANCES - 1, sizeof text);
    memcpy(other, text, sizeof text);
    memset(other + 64, 'x', sizeof text - 64);
    CHECK_EQ(colo_tolerance_compare(t, colo_tolerances_of(t, 0), text, other, sizeof text, NULL, NULL), sizeof text - 1);
    colo_tolerances_destroy(t);
}

static void test_refuses(void)
{
    struct colo_tolerance_rule r = rule("time=", 1);

    CHECK(colo_tolerances_are_sane(&r, 1));
    CHECK(colo_tolerances_are_sane(NULL, 0));
    CHECK(!colo_tolerances_are_sane(NULL, 1));
    r.length = 0;
    CHECK(!colo_tolerances_are_sane(&r, 1));
    r.length = COLO_MAX_TOLERATED + 1;
    CHECK(!colo_tolerances_are_sane(&r, 1));
    r = rule("abc\r\n", 1);
    CHECK(!colo_tolerances_are_sane(&r, 1));
    r = rule("abcd\r\n", 1);
    CHECK(colo_tolerances_are_sane(&r, 1));
    r.after[1] = 0x80;
    CHECK(!colo_tolerances_are_sane(&r, 1));
    r = rule("time=", 1);
    r.after_len = 65;
    CHECK(!colo_tolerances_are_sane(&r, 1));
    r = rule("time=", 1);
    r.has_until = 1;
    CHECK(!colo_tolerances_are_sane(&r, 1));
    r.until = '\r';
    CHECK(colo_tolerances_are_sane(&r, 1));
    r.match.has = 128;
    CHECK(!colo_tolerances_are_sane(&r, 1));
}

CHECK_MAIN(TEST(test_against_a_search_by_hand), TEST(test_states), TEST(test_the_largest), TEST(test_refuses), )
