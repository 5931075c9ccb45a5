/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What tests want of the host: its log, the errors that it can inject, the
 * interrupts by which SMMUs tell of errors, its CPUs, time and chance.
 */
#ifndef __SELFTEST_IOMMUFD_ARM_SMMUV3_HOST_H
#define __SELFTEST_IOMMUFD_ARM_SMMUV3_HOST_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include <linux/magic.h>

#include "kselftest.h"

static inline bool read_text(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY);
	ssize_t len;

	if (fd < 0)
		return false;
	len = read(fd, buf, size - 1);
	close(fd);
	buf[len > 0 ? len : 0] = 0;
	return len >= 0;
}

static inline bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	bool ok;

	if (fd < 0)
		return false;
	ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return ok;
}

/* ---- Numbers, time, CPUs ---- */

static double now_seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static unsigned int page_size(void)
{
	return sysconf(_SC_PAGESIZE);
}

static void sleep_seconds(double seconds)
{
	struct timespec ts = {
		.tv_sec = seconds,
		.tv_nsec = (seconds - (time_t)seconds) * 1e9,
	};

	nanosleep(&ts, NULL);
}

/* xorshift64*: all there has to be is something to start from. */
static uint64_t rng_next(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * 0x2545f4914f6cdd1dULL;
}

static unsigned int rng_below(uint64_t *state, unsigned int n)
{
	return (rng_next(state) >> 33) % n;
}

static uint64_t env_number(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

static uint64_t random_seed(void)
{
	uint64_t seed;

	if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
		seed = time(NULL);
	return seed;
}

static unsigned long read_meminfo(const char *name)
{
	unsigned long value = 0;
	char line[128];
	FILE *file;

	file = fopen("/proc/meminfo", "r");
	if (!file)
		return 0;
	while (fgets(line, sizeof(line), file))
		if (!strncmp(line, name, strlen(name)) &&
		    line[strlen(name)] == ':')
			value = strtoul(line + strlen(name) + 1, NULL, 10);
	fclose(file);
	return value;
}

/* The @nth of the CPUs that there are, and from the start again. */
static int nth_cpu(unsigned int nth)
{
	static cpu_set_t all;
	int cpu;

	/* As it was before anything was pinned. */
	if (!CPU_COUNT(&all) && sched_getaffinity(0, sizeof(all), &all))
		return -1;
	nth %= CPU_COUNT(&all);
	for (cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &all) && !nth--)
			return cpu;
	return -1;
}

static unsigned int nr_cpus(void)
{
	return sysconf(_SC_NPROCESSORS_ONLN);
}

static bool pin_to(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return !sched_setaffinity(0, sizeof(set), &set);
}

/* ---- The kernel log ---- */

struct kmsg {
	int fd;
	/* Messages of errors that were injected are as they should be. */
	bool injecting;
};

static inline void kmsg_mark(struct kmsg *kmsg)
{
	kmsg->fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (kmsg->fd >= 0)
		lseek(kmsg->fd, 0, SEEK_END);
}

/* What the driver says of an illegal command that fault injection has made. */
#define KMSG_INJECTED \
	"illegal command, command 0x0000000000000000 0x0000000000000000, replaced by CMD_SYNC"

/* That, or that there were too many of these for the log. */
static inline bool kmsg_is_injected(const char *record)
{
	return strstr(record, KMSG_INJECTED) ||
	       (strstr(record, "arm-smmu-v3 cmdq: ") &&
		strstr(record, " callbacks suppressed"));
}

static inline bool kmsg_is_bad(const struct kmsg *kmsg, const char *record)
{
	static const char * const bad[] = {
		"WARNING:", "BUG:", "Oops", "Internal error", "refcount_t:",
		"UBSAN:", "KASAN:", "KCSAN:", "circular locking",
		"recursive locking", "inconsistent lock", "suspicious RCU",
		"Invalid wait context", "INFO: rcu", "rcu: INFO",
		"blocked for more than", "soft lockup", "hard LOCKUP",
		"page allocation failure",
	};
	/* KERN_WARNING and worse */
	bool warning = (strtoul(record, NULL, 10) & 7) <= 4;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++)
		if (strstr(record, bad[i]))
			return true;
	if (kmsg->injecting && kmsg_is_injected(record))
		return false;
	return warning && strstr(record, "arm-smmu-v3");
}

/* The next record since the mark that should not be there. */
static inline bool kmsg_next_bad(struct kmsg *kmsg, char *buf, size_t size)
{
	ssize_t len;

	if (kmsg->fd < 0)
		return false;
	for (;;) {
		len = read(kmsg->fd, buf, size - 1);
		if (len < 0) {
			/* Records that were overwritten are not the last ones. */
			if (errno == EPIPE || errno == EINTR)
				continue;
			return false;
		}
		buf[len] = 0;
		/* What follows the text are properties. */
		*strchrnul(buf, '\n') = 0;
		if (kmsg_is_bad(kmsg, buf))
			return true;
	}
}

/* How many records there are since the mark that tell of an SMMU. */
static inline unsigned int kmsg_count_smmu(struct kmsg *kmsg)
{
	unsigned long long seq, next = 0;
	unsigned int count = 0;
	char buf[1024];
	ssize_t len;

	for (;;) {
		len = read(kmsg->fd, buf, sizeof(buf) - 1);
		if (len < 0 && (errno == EPIPE || errno == EINTR))
			continue;
		if (len < 0)
			return count;
		buf[len] = 0;
		*strchrnul(buf, '\n') = 0;
		if (sscanf(buf, "%*u,%llu,", &seq) != 1)
			continue;
		/* Those that were overwritten were too many in any case. */
		if (next && seq > next)
			count += seq - next;
		next = seq + 1;
		if (strstr(buf, "arm-smmu-v3"))
			count++;
	}
}

/* ---- Errors that the SMMU raises ---- */

#define DEBUGFS "/sys/kernel/debug"

/* As in Documentation/fault-injection/. */
enum fault_file {
	FAULT_PROBABILITY,
	FAULT_INTERVAL,
	FAULT_TIMES,
	FAULT_SPACE,
	FAULT_VERBOSE,
	FAULT_TASK_FILTER,
	FAULT_FILES,
};

/*
 * Which of the guests' commands are made illegal behind the back of the code
 * that has checked them: fail_guest_cmd.<SMMU>/ in debugfs.
 */
struct faults {
	/* The name of the SMMU that the device is behind. */
	char smmu[NAME_MAX + 1];
	char saved[FAULT_FILES][32];
	/* It was us who mounted debugfs. */
	bool mounted;
	/* Why there are none; empty if there are. */
	char unusable[800];
};

static inline void faults_path(const struct faults *faults,
			       enum fault_file file, char *path, size_t size)
{
	static const char * const names[] = {
		[FAULT_PROBABILITY] = "probability",
		[FAULT_INTERVAL] = "interval",
		[FAULT_TIMES] = "times",
		[FAULT_SPACE] = "space",
		[FAULT_VERBOSE] = "verbose",
		[FAULT_TASK_FILTER] = "task-filter",
	};

	snprintf(path, size, DEBUGFS "/fail_guest_cmd.%s/%s", faults->smmu,
		 names[file]);
}

static inline bool faults_write(const struct faults *faults,
				enum fault_file file, const char *text)
{
	char path[400];

	faults_path(faults, file, path, sizeof(path));
	return write_text(path, text);
}

static inline bool faults_set(const struct faults *faults,
			      enum fault_file file, long value)
{
	char text[32];

	snprintf(text, sizeof(text), "%ld", value);
	return faults_write(faults, file, text);
}

/* How many more there are to be. */
static inline long faults_left(const struct faults *faults)
{
	char path[400], text[32];

	faults_path(faults, FAULT_TIMES, path, sizeof(path));
	return read_text(path, text, sizeof(text)) ? atol(text) : -1;
}

/* The SMMU is the device that its IOMMU belongs to. */
static inline bool find_smmu(const char *bdf, char *name, size_t size)
{
	char path[400], real[PATH_MAX];
	int i;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu", bdf);
	if (!realpath(path, real))
		return false;
	/* .../<SMMU>/iommu/<IOMMU> */
	for (i = 0; i < 2; i++) {
		char *slash = strrchr(real, '/');

		if (!slash)
			return false;
		*slash = 0;
	}
	if (!strrchr(real, '/'))
		return false;
	snprintf(name, size, "%s", strrchr(real, '/') + 1);
	return *name;
}

static inline bool debugfs_is_mounted(void)
{
	struct statfs fs;

	return !statfs(DEBUGFS, &fs) && fs.f_type == DEBUGFS_MAGIC;
}

/* Finds out how it is set, for it to be left like that. */
static inline void faults_find(struct faults *faults, const char *bdf)
{
	char path[400];
	int i;

	memset(faults, 0, sizeof(*faults));
	if (!find_smmu(bdf, faults->smmu, sizeof(faults->smmu))) {
		snprintf(faults->unusable, sizeof(faults->unusable),
			 "%s is not behind an IOMMU", bdf);
		return;
	}
	if (!debugfs_is_mounted()) {
		if (mount("debugfs", DEBUGFS, "debugfs", 0, NULL)) {
			snprintf(faults->unusable, sizeof(faults->unusable),
				 "debugfs cannot be mounted: %s",
				 strerror(errno));
			return;
		}
		faults->mounted = true;
	}
	for (i = 0; i < FAULT_FILES; i++) {
		faults_path(faults, i, path, sizeof(path));
		if (!read_text(path, faults->saved[i],
			       sizeof(faults->saved[i]))) {
			snprintf(faults->unusable, sizeof(faults->unusable),
				 "needs CONFIG_ARM_SMMU_V3_FAULT_INJECTION (%s: %s)",
				 path, strerror(errno));
			return;
		}
	}
}

/* Everything is set, but no command is chosen yet. */
static inline bool faults_begin(const struct faults *faults)
{
	return faults_set(faults, FAULT_TIMES, 0) &&
	       faults_set(faults, FAULT_SPACE, 0) &&
	       faults_set(faults, FAULT_INTERVAL, 1) &&
	       faults_set(faults, FAULT_VERBOSE, 0) &&
	       faults_write(faults, FAULT_TASK_FILTER, "N") &&
	       faults_set(faults, FAULT_PROBABILITY, 100);
}

/*
 * The next @k commands pass, and then @times fail. A command passes if there is
 * more space than it takes, which is 1.
 */
static inline bool faults_at(const struct faults *faults, unsigned int k,
			     long times)
{
	return faults_set(faults, FAULT_SPACE, k + 1L) &&
	       faults_set(faults, FAULT_TIMES, times);
}

static inline void faults_restore(const struct faults *faults)
{
	int i;

	if (*faults->unusable)
		return;
	for (i = 0; i < FAULT_FILES; i++)
		faults_write(faults, i, faults->saved[i]);
}

/* To be called once, at the very end. */
static inline void faults_release(struct faults *faults)
{
	faults_restore(faults);
	if (faults->mounted)
		umount2(DEBUGFS, MNT_DETACH);
	faults->mounted = false;
}

/* What the driver has counted, as far as it is of interest here. */
struct cmdq_stats {
	uint64_t commands;
	uint64_t ill;
	uint64_t serviced_inline;
	/* The sum of all that is not to be expected. */
	uint64_t unexpected;
};

static inline bool cmdq_stats_read(const struct faults *faults,
				   struct cmdq_stats *stats)
{
	static const char * const unexpected[] = {
		"abt", "atc_inv_sync", "other_errors", "replays", "refused",
		"timeouts",
	};
	unsigned int found = 0, i;
	unsigned long long value;
	char path[400], name[32];
	FILE *file;

	memset(stats, 0, sizeof(*stats));
	snprintf(path, sizeof(path), DEBUGFS "/%s/cmdq", faults->smmu);
	file = fopen(path, "r");
	if (!file)
		return false;
	while (fscanf(file, "%31s %llu", name, &value) == 2) {
		found++;
		if (!strcmp(name, "commands"))
			stats->commands = value;
		else if (!strcmp(name, "ill"))
			stats->ill = value;
		else if (!strcmp(name, "serviced_inline"))
			stats->serviced_inline = value;
		else
			found--;
		for (i = 0; i < ARRAY_SIZE(unexpected); i++) {
			if (strcmp(name, unexpected[i]))
				continue;
			stats->unexpected += value;
			found++;
		}
	}
	fclose(file);
	return found == 3 + ARRAY_SIZE(unexpected);
}

/* ---- The interrupt by which the SMMU tells of errors ---- */

#define GERROR_MAX 16

/* A machine has one for each of its SMMUs, and they all have the same name. */
struct gerror {
	unsigned int n;
	unsigned int irq[GERROR_MAX];
	char saved[GERROR_MAX][256];
};

static inline bool gerror_write(const struct gerror *gerror, unsigned int i,
				const char *cpus)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/irq/%u/smp_affinity_list",
		 gerror->irq[i]);
	return write_text(path, cpus);
}

static inline void gerror_find(struct gerror *gerror)
{
	char *line = NULL, path[64];
	size_t size = 0;
	unsigned int i;
	FILE *file;

	memset(gerror, 0, sizeof(*gerror));
	file = fopen("/proc/interrupts", "r");
	if (!file)
		return;
	while (gerror->n < GERROR_MAX && getline(&line, &size, file) > 0)
		if (strstr(line, "arm-smmu-v3-gerror") &&
		    sscanf(line, "%u:", &gerror->irq[gerror->n]) == 1)
			gerror->n++;
	free(line);
	fclose(file);
	for (i = 0; i < gerror->n; i++) {
		snprintf(path, sizeof(path), "/proc/irq/%u/smp_affinity_list",
			 gerror->irq[i]);
		if (!read_text(path, gerror->saved[i],
			       sizeof(gerror->saved[i])))
			gerror->n = 0;
	}
}

static inline bool gerror_route(const struct gerror *gerror, unsigned int cpu)
{
	unsigned int i;
	char cpus[16];

	snprintf(cpus, sizeof(cpus), "%u", cpu);
	for (i = 0; i < gerror->n; i++)
		if (!gerror_write(gerror, i, cpus))
			return false;
	return gerror->n;
}

static inline void gerror_restore(const struct gerror *gerror)
{
	unsigned int i;

	for (i = 0; i < gerror->n; i++)
		gerror_write(gerror, i, gerror->saved[i]);
}

/* Whether faults are for this process, if not for all. */
static bool make_it_fail(bool fail)
{
	return write_text("/proc/self/make-it-fail", fail ? "1" : "0");
}

#endif /* __SELFTEST_IOMMUFD_ARM_SMMUV3_HOST_H */
