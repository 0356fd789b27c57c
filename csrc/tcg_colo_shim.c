// SPDX-License-Identifier: Apache-2.0
/*
 * tcg_colo_shim: an LD_PRELOAD library that lets QEMU run COLO without KVM. To show and to test, not to serve.
 *
 * What goes wrong without it.  migration/colo.c calls qemu_savevm_live_state() from the COLO thread without
 * holding QEMU's big lock.  With KVM nothing down there waits.  Under TCG it ends in do_run_on_cpu(), which
 * calls qemu_cond_wait(&qemu_work_cond, &qemu_global_mutex): a condition wait on a mutex that the calling
 * thread does not own.  pthread_cond_wait() then unlocks somebody else's mutex, and sooner or later all
 * threads sleep.
 *
 * What this does.  It interposes pthread_cond_wait().
 *
 *  - The caller owns the mutex (every correct caller): note (condition, mutex) in a table of current
 *    waiters, call the real function, strike the note out.
 *
 *  - The caller does not own it: lock it; wake everybody who waits with this mutex; wait at most 1 ms on
 *    the condition; unlock; return 0.  To the caller that is a spurious wake-up, which POSIX allows, and
 *    QEMU waits in a loop around its predicate.  On return the caller again does not own the mutex, as
 *    it did not before.
 *
 * Why everybody is woken.  do_run_on_cpu() queues work for a vCPU and kicks it by broadcasting the vCPU's
 * halt_cond.  As the kicker doesn't hold the lock, an idle vCPU may have looked at its queue just before and
 * goes to sleep just after: the kick is lost, and the guest hangs.  Under the lock no such gap exists, so
 * broadcasting again here makes up for a kick that was lost.
 *
 * Why broadcasting is safe.  A condition in the table has a thread waiting on it with this mutex.  That
 * thread can't leave pthread_cond_wait(), let alone destroy the condition, before it gets the mutex, which
 * we hold.
 *
 * Only glibc is supported: the owner is read from the mutex itself (__data.__owner, a thread id), which
 * glibc maintains for every mutex type unless lock elision is on (it is off by default).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

/* QEMU has a handful of threads (vCPUs, main loop, COLO, I/O and worker threads).  A waiter that finds no
 * free slot merely isn't woken again by us, so running out costs what not having the table would. */
enum { MAX_WAITERS = 256 };

static const long WAIT_NS = 1000000; /* 1 ms: short beside a checkpoint, long beside a vCPU's wake-up */

typedef int cond_wait_fn(pthread_cond_t *cond, pthread_mutex_t *mutex);

struct waiter {
    pthread_cond_t *cond; /* NULL: the slot is free */
    pthread_mutex_t *mutex;
};

static struct waiter waiters[MAX_WAITERS];
static pthread_mutex_t waiters_lock = PTHREAD_MUTEX_INITIALIZER;

static cond_wait_fn *real_cond_wait;
static pthread_once_t resolve_once = PTHREAD_ONCE_INIT;

/* glibc carries two pthread_cond_wait on x86-64: the one of 2.2.5 expects another pthread_cond_t.  Ask for
 * the modern one by version, and without one where the platform never had the old. */
static void resolve(void)
{
    void *symbol = dlvsym(RTLD_NEXT, "pthread_cond_wait", "GLIBC_2.3.2");

    if (!symbol)
        symbol = dlsym(RTLD_NEXT, "pthread_cond_wait");
    if (!symbol)
        abort();
    /* ISO C has no conversion from object to function pointer; POSIX asks for this way of writing it. */
    *(void **)&real_cond_wait = symbol;
}

/* Returns the slot taken, or -1 if the table is full. */
static int waiter_add(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
    int slot = -1;

    pthread_mutex_lock(&waiters_lock);
    for (int i = 0; i < MAX_WAITERS; i++) {
        if (!waiters[i].cond) {
            waiters[i] = (struct waiter){.cond = cond, .mutex = mutex};
            slot = i;
            break;
        }
    }
    pthread_mutex_unlock(&waiters_lock);
    return slot;
}

static void waiter_remove(int slot)
{
    if (slot < 0)
        return;
    pthread_mutex_lock(&waiters_lock);
    waiters[slot] = (struct waiter){.cond = NULL, .mutex = NULL};
    pthread_mutex_unlock(&waiters_lock);
}

/* Wakes every thread that waits with @mutex, which the caller holds. */
static void wake_all_with(const pthread_mutex_t *mutex)
{
    pthread_mutex_lock(&waiters_lock);
    for (int i = 0; i < MAX_WAITERS; i++) {
        if (waiters[i].cond && waiters[i].mutex == mutex)
            pthread_cond_broadcast(waiters[i].cond);
    }
    pthread_mutex_unlock(&waiters_lock);
}

static int wait_without_ownership(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
    struct timespec until;

    pthread_mutex_lock(mutex);
    wake_all_with(mutex);
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += WAIT_NS;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_nsec -= 1000000000L;
        until.tv_sec++;
    }
    /* clockwait, not timedwait: it doesn't depend on which clock the condition was made with. */
    pthread_cond_clockwait(cond, mutex, CLOCK_MONOTONIC, &until);
    pthread_mutex_unlock(mutex);
    return 0;
}

EXPORT int pthread_cond_wait(pthread_cond_t *cond, pthread_mutex_t *mutex)
{
    pthread_once(&resolve_once, resolve);
    if (mutex->__data.__owner != (int)gettid())
        return wait_without_ownership(cond, mutex);

    int slot = waiter_add(cond, mutex);
    int result = real_cond_wait(cond, mutex);
    waiter_remove(slot);
    return result;
}
