/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest's server whose answers and memory bench/policy.py governs. One line in, one line out, by TCP:
 *
 *   same N            answers N, the same on both VMs
 *   differ N          answers N and the time in ns: the two VMs differ, and the client waits for a checkpoint
 *   dirty RATE PAGES  from now on writes to RATE pages a second, in turn, of an area of PAGES; answers `dirty`
 *
 * usage: dirtier PORT
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, MOST_PAGES = 24576, TICK_NS = 10000000 };

static _Atomic unsigned rate, pages = 1;

/* By the clock and not by the tick, so that a guest that stood still makes up for nothing. */
static void *write_pages(void *arg)
{
	unsigned char *area = mmap(NULL, (size_t)MOST_PAGES * PAGE, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned next = 0;
	double owed = 0;

	(void)arg;
	if (area == MAP_FAILED)
		return NULL;
	for (;;) {
		nanosleep(&(struct timespec){ .tv_nsec = TICK_NS }, NULL);
		for (owed += rate * (TICK_NS / 1e9); owed >= 1; owed--) {
			next = (next + 1) % pages;
			area[(size_t)next * PAGE]++;
		}
	}
}

static void answer(FILE *in, FILE *out)
{
	char line[128];

	while (fgets(line, sizeof(line), in)) {
		unsigned number, area;
		struct timespec now;

		if (sscanf(line, "same %u", &number) == 1) {
			fprintf(out, "%u %016x\n", number, 0u);
		} else if (sscanf(line, "differ %u", &number) == 1) {
			/* Not random bytes: the kernel's generator is a copy of the primary's after a checkpoint. */
			clock_gettime(CLOCK_MONOTONIC, &now);
			fprintf(out, "%u %07lld%09ld\n", number, (long long)now.tv_sec, now.tv_nsec);
		} else if (sscanf(line, "dirty %u %u", &number, &area) == 2 && area && area <= MOST_PAGES) {
			rate = number;
			pages = area;
			fputs("dirty\n", out);
		} else {
			fputs("?\n", out);
		}
		fflush(out);
	}
}

static void *serve(void *arg)
{
	int fd = (int)(intptr_t)arg;
	FILE *in = fdopen(fd, "r"), *out = fdopen(dup(fd), "w");

	if (in && out)
		answer(in, out);
	if (in)
		fclose(in);
	if (out)
		fclose(out);
	return NULL;
}

int main(int argc, char **argv)
{
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argc > 1 ? argv[1] : "0")) };
	int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1, fd;
	pthread_t thread;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&here, sizeof(here)) || listen(listener, 16)) {
		perror("dirtier");
		return 1;
	}
	if (pthread_create(&thread, NULL, write_pages, NULL))
		return 1;
	while ((fd = accept(listener, NULL, NULL)) >= 0) {
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd))
			close(fd);
		else
			pthread_detach(thread);
	}
	return 1;
}
