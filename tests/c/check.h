/* SPDX-License-Identifier: Apache-2.0 */
/*
 * check.h - the harness of the C tests, header only.
 *
 *     static void test_wraps(void) { CHECK_EQ(colo_seq_diff(1, UINT32_MAX), 2); }
 *
 *     CHECK_MAIN(
 *         TEST(test_wraps),
 *     )
 *
 * A failed CHECK prints file, line and both values, and the test goes on; a failed REQUIRE ends the test function it
 * stands in (which must return void). In a loop over a table say CHECK_NOTE("row %zu", i): it is printed before the
 * first failure that follows. The program takes names (or parts of names) of tests to run as arguments, prints
 * "N passed, N failed", and exits with 1 if one failed.
 */
#ifndef CHECK_H
#define CHECK_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct check_test {
    const char *name;
    void (*run)(void);
};

/* One program, one thread of tests: plain statics. */
static int check_failures;     /* of the running test */
static char check_context[160]; /* the last CHECK_NOTE, empty once printed */

#define TEST(fn) {#fn, fn}

#define CHECK(cond) check_true(__FILE__, __LINE__, #cond, (cond) ? 1 : 0)
/* Integers of any type that fits intmax_t; unsigned ones above its range are compared modulo 2^64. */
#define CHECK_EQ(a, b) check_eq(__FILE__, __LINE__, #a, #b, (intmax_t)(a), (intmax_t)(b))
#define CHECK_STR(a, b) check_str(__FILE__, __LINE__, #a, #b, (a), (b))
#define CHECK_MEM(a, b, len) check_mem(__FILE__, __LINE__, #a, #b, (a), (b), (size_t)(len))
#define REQUIRE(cond) \
    do { \
        if (!CHECK(cond)) \
            return; \
    } while (0)
#define CHECK_NOTE(...) ((void)snprintf(check_context, sizeof check_context, __VA_ARGS__))

#define CHECK_MAIN(...) \
    int main(int argc, char **argv) \
    { \
        static const struct check_test tests[] = {__VA_ARGS__}; \
        return check_run(tests, sizeof tests / sizeof tests[0], argc, argv); \
    }

__attribute__((unused, format(printf, 3, 4))) static int check_fail(const char *file, int line, const char *fmt, ...)
{
    va_list ap;

    if (check_context[0])
        fprintf(stderr, "  at %s:\n", check_context);
    check_context[0] = '\0';
    fprintf(stderr, "  %s:%d: failed: ", file, line);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    check_failures++;
    return 0;
}

__attribute__((unused)) static int check_true(const char *file, int line, const char *text, int ok)
{
    return ok ? 1 : check_fail(file, line, "%s", text);
}

__attribute__((unused)) static int check_eq(const char *file, int line, const char *as, const char *bs, intmax_t a,
                                            intmax_t b)
{
    if (a == b)
        return 1;
    return check_fail(file, line, "%s == %s: %jd (0x%jx) != %jd (0x%jx)", as, bs, a, (uintmax_t)a, b, (uintmax_t)b);
}

__attribute__((unused)) static int check_str(const char *file, int line, const char *as, const char *bs, const char *a,
                                             const char *b)
{
    if (a && b && strcmp(a, b) == 0)
        return 1;
    return check_fail(file, line, "%s == %s: \"%s\" != \"%s\"", as, bs, a ? a : "(null)", b ? b : "(null)");
}

__attribute__((unused)) static int check_mem(const char *file, int line, const char *as, const char *bs, const void *a,
                                             const void *b, size_t len)
{
    const uint8_t *x = a, *y = b;
    size_t i = 0;

    while (i < len && x[i] == y[i])
        i++;
    if (i == len)
        return 1;
    return check_fail(file, line, "%s == %s: byte %zu of %zu: %02x != %02x", as, bs, i, len, x[i], y[i]);
}

__attribute__((unused)) static int check_run(const struct check_test *tests, size_t count, int argc, char **argv)
{
    size_t passed = 0, failed = 0;

    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < count; i++) {
        int wanted = argc < 2;

        for (int k = 1; k < argc; k++)
            wanted |= strstr(tests[i].name, argv[k]) != NULL;
        if (!wanted)
            continue;
        check_failures = 0;
        check_context[0] = '\0';
        tests[i].run();
        if (check_failures) {
            failed++;
            fprintf(stderr, "FAILED %s\n", tests[i].name);
        } else {
            passed++;
        }
    }
    printf("%zu passed, %zu failed\n", passed, failed);
    return failed != 0;
}

#endif
