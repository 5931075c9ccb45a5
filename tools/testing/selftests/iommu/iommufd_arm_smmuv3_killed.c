// SPDX-License-Identifier: GPL-2.0-only
/*
 * Callers that are killed: those commands that are said to be complete are, and
 * nothing stays behind.
 */
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>

#include "iommufd_arm_smmuv3_test.h"

/* ---- Callers that are killed ---- */

/* Shared by a process that gets killed and one that watches. */
struct victim {
	/* What the kernel left there, if it came to that. */
	struct iommu_hwpt_invalidate arg;
	enum { STARTING, CALLING, RETURNED, BROKEN } state;
};

FIXTURE(killed)
{
	struct kmsg kmsg;
	struct victim *victim;
	struct smmu_cmd *cmds;
	/* How long a call takes, about. */
	double duration;
};

FIXTURE_SETUP(killed)
{
	size_t size = ENTRY_NUM_MAX * sizeof(*self->cmds);
	unsigned int part = 4096;
	struct vm vm;

	kmsg_mark(&self->kmsg);
	if (!setup_vm(_metadata, &vm, duts[0]))
		return;
	self->cmds = mmap(NULL, size, PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->cmds);
	fill_good(self->cmds, ENTRY_NUM_MAX);
	self->victim = mmap(NULL, sizeof(*self->victim),
			    PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			    -1, 0);
	ASSERT_NE(MAP_FAILED, self->victim);

	self->duration = now_seconds();
	ASSERT_EQ(0, invalidate(&vm, self->cmds, part).err);
	self->duration = (now_seconds() - self->duration) *
			 (ENTRY_NUM_MAX / part);
	vm_close(&vm);
}

FIXTURE_TEARDOWN(killed)
{
	check_kmsg(_metadata, &self->kmsg);
}

/* @vm is inherited, or else the victim has one of its own. */
static pid_t victim_start(struct victim *victim, struct smmu_cmd *cmds,
			  struct vm *vm)
{
	struct vm own;
	pid_t pid;

	memset(victim, 0, sizeof(*victim));
	pid = fork();
	if (pid)
		return pid;

	if (!vm) {
		vm = &own;
		if (vm_open(vm, duts[0])) {
			__atomic_store_n(&victim->state, BROKEN,
					 __ATOMIC_SEQ_CST);
			_exit(1);
		}
	}
	victim->arg = invalidate_arg(vm, cmds, sizeof(*cmds), ENTRY_NUM_MAX);
	__atomic_store_n(&victim->state, CALLING, __ATOMIC_SEQ_CST);
	ioctl(vm->iommu->iommufd, IOMMU_HWPT_INVALIDATE, &victim->arg);
	__atomic_store_n(&victim->state, RETURNED, __ATOMIC_SEQ_CST);
	_exit(0);
}

/*
 * Kills a caller @delay seconds after it has entered the call. Returns true if
 * it was killed in the middle of the array.
 */
static bool kill_in_call(struct __test_metadata *_metadata,
			 struct victim *victim, struct smmu_cmd *cmds,
			 struct vm *vm, double delay)
{
	pid_t pid = victim_start(victim, cmds, vm);
	double start = now_seconds();
	int status;

	ASSERT_LT(0, pid);
	while (__atomic_load_n(&victim->state, __ATOMIC_SEQ_CST) == STARTING &&
	       now_seconds() - start < HANG_SECONDS / 4)
		sched_yield();
	ASSERT_NE(STARTING, victim->state);
	sleep_seconds(delay);
	ASSERT_EQ(0, kill(pid, SIGKILL));

	start = now_seconds();
	while (waitpid(pid, &status, WNOHANG) != pid) {
		ASSERT_LT(now_seconds() - start, HANG_SECONDS / 4);
		sleep_seconds(0.001);
	}
	ASSERT_NE(BROKEN, victim->state);
	return victim->state == CALLING && victim->arg.entry_num &&
	       victim->arg.entry_num < ENTRY_NUM_MAX;
}

/*
 * When the signal comes is a matter of luck. (An entry_num of all the entries
 * is either that, or what was there before the call had begun.)
 */
static bool kill_until_hit(struct __test_metadata *_metadata,
			   FIXTURE_DATA(killed) * self, struct vm *vm)
{
	double delay = self->duration / 4;
	int tries;

	for (tries = 0; tries < 16; tries++) {
		/* A call that came to its end has read the last entry. */
		if (vm && vm_has_dma(vm)) {
			ASSERT_EQ(0, dma_restore(vm).err);
			ASSERT_EQ(0, dma_begin(vm, CHANGE_PAGES));
		}
		if (kill_in_call(_metadata, self->victim, self->cmds, vm,
				 delay))
			return true;
		TH_LOG("%s, entry_num %u, after %.6f s",
		       self->victim->state == RETURNED ? "returned" : "killed",
		       self->victim->arg.entry_num, delay);
		if (self->victim->state == RETURNED)
			delay /= 2;
		else
			delay += 0.002;
	}
	return false;
}

/* Those that are said to be complete are, and someone else can go on. */
TEST_F_TIMEOUT(killed, count_is_true, 4 * HANG_SECONDS)
{
	struct answer got;
	struct vm vm;

	ASSERT_EQ(0, vm_open(&vm, duts[0]));
	EXPECT_TRUE(kill_until_hit(_metadata, self, &vm));
	got = answer(0, self->victim->arg.entry_num,
		     self->victim->arg.out_driver_error_code);
	EXPECT_EQ(0, got.code);
	/* The first entry invalidates A, and the last one, B, was never read. */
	if (vm_has_dma(&vm))
		expect_dma(_metadata, &vm, "afterwards", SEEN_NEW, SEEN_OLD);
	expect_usable(_metadata, &vm);
	vm_close(&vm);
}

/* All that it had open goes away with it, right then. */
TEST_F_TIMEOUT(killed, nothing_stays_open, 4 * HANG_SECONDS)
{
	struct vm vm;

	EXPECT_TRUE(kill_until_hit(_metadata, self, NULL));
	/* The device cannot be bound twice. */
	ASSERT_EQ(0, vm_open(&vm, duts[0]))
	{
		TH_LOG("%s", vm.error);
	}
	expect_usable(_metadata, &vm);
	vm_close(&vm);
}

static long read_vmstat(const char *name)
{
	long value = -1;
	char key[64];
	long val;
	FILE *file;

	file = fopen("/proc/vmstat", "r");
	if (!file)
		return -1;
	while (fscanf(file, "%63s %ld", key, &val) == 2)
		if (!strcmp(key, name))
			value = val;
	fclose(file);
	return value;
}

static long pinned_pages(void)
{
	/* What the CPUs have not added up yet. */
	write_text("/proc/sys/vm/stat_refresh", "1");
	return read_vmstat("nr_foll_pin_acquired") - read_vmstat("nr_foll_pin_released");
}

#define KMEMLEAK "/sys/kernel/debug/kmemleak"

/* The number of leaks that kmemleak finds, or -1. */
static int kmemleak_scan(struct __test_metadata *_metadata)
{
	char line[256];
	int leaks = 0;
	FILE *file;

	/* It leaves out what is younger than 5 seconds. */
	sleep_seconds(6);
	/* Twice, as a pointer that is on its way may be missed. */
	if (!write_text(KMEMLEAK, "scan") || !write_text(KMEMLEAK, "scan"))
		return -1;
	file = fopen(KMEMLEAK, "r");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		if (!strncmp(line, "unreferenced", 12))
			leaks++;
		TH_LOG("%.*s", (int)strcspn(line, "\n"), line);
	}
	fclose(file);
	return leaks;
}

TEST_F_TIMEOUT(killed, nothing_leaks, 8 * HANG_SECONDS)
{
	const unsigned int warm_up = 16, rounds = 48;
	unsigned long slab = 0;
	unsigned int hits = 0, i;
	bool kmemleak;
	long pinned = 0, grown;

	if (!kill_until_hit(_metadata, self, NULL))
		ASSERT_TRUE(false) TH_LOG("no caller died in its call");
	kmemleak = write_text(KMEMLEAK, "scan") && write_text(KMEMLEAK, "clear");
	for (i = 0; i < warm_up + rounds; i++) {
		if (i == warm_up) {
			slab = read_meminfo("SUnreclaim");
			pinned = pinned_pages();
		}
		hits += kill_in_call(_metadata, self->victim, self->cmds, NULL,
				     self->duration * (i % 8 + 1) / 16);
	}
	EXPECT_LE(rounds / 4, hits);
	/* The guest's memory is a lot more than a page. */
	pinned = pinned_pages() - pinned;
	EXPECT_LT(pinned, (long)rounds);

	if (kmemleak) {
		EXPECT_EQ(0, kmemleak_scan(_metadata));
		return;
	}
	/* Without that, only leaks of pages are told from noise. */
	grown = read_meminfo("SUnreclaim") - slab;
	TH_LOG("no kmemleak; slab memory: %ld kB more after %u kills", grown,
	       rounds);
	EXPECT_LT(grown, 8L * rounds);
}

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
