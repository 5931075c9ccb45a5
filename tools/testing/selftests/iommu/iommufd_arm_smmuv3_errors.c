// SPDX-License-Identifier: GPL-2.0-only
/*
 * Errors that the SMMU itself raises. That takes a kernel with
 * CONFIG_ARM_SMMU_V3_FAULT_INJECTION, whose settings in debugfs are changed
 * meanwhile, as are the CPUs of the interrupts by which SMMUs tell of errors.
 */
#include <sys/mount.h>

#include "iommufd_arm_smmuv3_test.h"
#include "iommufd_arm_smmuv3_legal.h"

/* ---- Errors that the SMMU itself raises for a VM's commands ---- */

FIXTURE(injected)
{
	struct vm vm;
	struct kmsg kmsg;
	struct cmdq_stats before;
	/* How many errors there must have been so far. */
	uint64_t errors;
};

FIXTURE_SETUP(injected)
{
	if (setup_vm(_metadata, &self->vm, duts[0]))
		setup_faults(_metadata, &self->kmsg, &self->before);
}

FIXTURE_TEARDOWN(injected)
{
	faults_restore(&faults);
	expect_errors(_metadata, &self->before, self->errors);
	vm_close(&self->vm);
	check_kmsg(_metadata, &self->kmsg);
}

/* Makes command @k of an array fail, and holds the answer against that. */
static void check_fault(struct __test_metadata *_metadata,
			FIXTURE_DATA(injected) * self, struct tally *tally,
			const struct smmu_cmd *cmds, unsigned int n,
			unsigned int k)
{
	ASSERT_TRUE(faults_at(&faults, k, 1));
	CHECK(tally, invalidate(&self->vm, cmds, n), answer(EIO, k, ILL),
	      "n = %u, k = %u", n, k);
	self->errors++;
}

/* Each k of an array, and each k that is the last one of an array. */
TEST_F_TIMEOUT(injected, each_position, HANG_SECONDS)
{
	struct smmu_cmd cmds[POSITIONS + 1];
	const unsigned int n = ARRAY_SIZE(cmds);
	struct tally tally = {};
	unsigned int k;

	fill_good(cmds, n);
	for (k = 0; k < n; k++) {
		check_fault(_metadata, self, &tally, cmds, n, k);
		expect_errors(_metadata, &self->before, self->errors);
		CHECK(&tally, invalidate(&self->vm, cmds, n), answer(0, n, 0),
		      "n = %u, after k = %u", n, k);
		check_fault(_metadata, self, &tally, cmds, k + 1, k);
		expect_errors(_metadata, &self->before, self->errors);
		CHECK(&tally, invalidate(&self->vm, cmds, n), answer(0, n, 0),
		      "n = %u, after k = %u of %u", n, k, k + 1);
		if (self->errors != 2ULL * (k + 1) || tally.logged)
			break;
	}
	expect_tally(_metadata, &tally);
	expect_errors(_metadata, &self->before, 2 * n);
	expect_usable(_metadata, &self->vm);
}

/* Entries 0 and k - 1 are said to be complete: they must be. */
TEST_F_TIMEOUT(injected, position_dma, HANG_SECONDS)
{
	struct smmu_cmd cmds[POSITIONS + 3];
	struct tally tally = {};
	char when[32];
	unsigned int i;

	if (!vm_has_dma(&self->vm))
		SKIP(return, NO_DMA);
	for (i = 0; i < ARRAY_SIZE(borders); i++) {
		unsigned int k = borders[i];

		fill_good(cmds, k);
		cmds[k] = cmd_elsewhere();
		cmds[k + 1] = cmd_elsewhere();
		ASSERT_EQ(0, dma_begin(&self->vm, CHANGE_PAGES));
		check_fault(_metadata, self, &tally, cmds, k + 2, k);
		snprintf(when, sizeof(when), "k = %u", k);
		expect_dma(_metadata, &self->vm, when, SEEN_NEW,
			   k > 1 ? SEEN_NEW : SEEN_OLD);
	}
	expect_tally(_metadata, &tally);
}

/*
 * The one that is said to have failed is the one that had no effect: a caller
 * that goes on with it gets it done.
 */
TEST_F_TIMEOUT(injected, resume_dma, HANG_SECONDS)
{
	static const unsigned int ks[] = { 1, 62, 63, 126, 150 };
	struct smmu_cmd cmds[POSITIONS];
	struct sights sights;
	struct tally tally = {};
	unsigned int i;

	if (!vm_has_dma(&self->vm))
		SKIP(return, NO_DMA);
	for (i = 0; i < ARRAY_SIZE(ks); i++) {
		unsigned int k = ks[i], n = k + 3;

		fill_good(cmds, n);
		cmds[0] = cmd_elsewhere();
		cmds[n - 1] = cmd_elsewhere();
		cmds[k - 1] = cmd_tlbi_va(ASID, IOVA_A);
		cmds[k] = cmd_tlbi_va(ASID, IOVA_B);
		ASSERT_EQ(0, dma_begin(&self->vm, CHANGE_PAGES));
		check_fault(_metadata, self, &tally, cmds, n, k);
		ASSERT_EQ(0, dma_look(&self->vm));
		CHECK(&tally, invalidate(&self->vm, cmds + k, n - k),
		      answer(0, n - k, 0), "from k = %u", k);
		ASSERT_EQ(0, dma_end(&self->vm, &sights));
		expect_sight(_metadata, "before the invalidation",
			     sights.page[1], SEEN_OLD, SEEN_OLD);
		expect_sight(_metadata, "after the failure", sights.page[2],
			     SEEN_NEW, SEEN_OLD);
		expect_sight(_metadata, "after the rest", sights.page[3],
			     SEEN_NEW, SEEN_NEW);
	}
	expect_tally(_metadata, &tally);
}

TEST_F_TIMEOUT(injected, far_back, HANG_SECONDS)
{
	static const unsigned int ks[] = { 4096, 65535, 65536, 262144,
					   ENTRY_NUM_MAX - 1 };
	size_t size = ENTRY_NUM_MAX * sizeof(struct smmu_cmd);
	struct tally tally = {};
	struct smmu_cmd *cmds;
	unsigned int i;

	cmds = mmap(NULL, size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, cmds);
	fill_good(cmds, ENTRY_NUM_MAX);
	for (i = 0; i < ARRAY_SIZE(ks); i++)
		check_fault(_metadata, self, &tally, cmds, ENTRY_NUM_MAX,
			    ks[i]);
	expect_tally(_metadata, &tally);
	munmap(cmds, size);
	expect_usable(_metadata, &self->vm);
}

/* Each kind of command, and an array of all of them. */
TEST_F_TIMEOUT(injected, each_opcode, HANG_SECONDS)
{
	struct smmu_cmd cmds[ARRAY_SIZE(supported)];
	struct tally tally = {};
	unsigned int n = 0, i;

	for (i = 0; i < ARRAY_SIZE(supported); i++) {
		struct smmu_cmd cmd = cmd_plain(&self->vm, supported[i]);

		if (cmd_legal(&self->vm, cmd) && cmd_harmless(&self->vm, cmd))
			cmds[n++] = cmd;
	}
	ASSERT_NE(0, n);
	for (i = 0; i < n; i++) {
		check_fault(_metadata, self, &tally, cmds + i, 1, 0);
		check_fault(_metadata, self, &tally, cmds, n, i);
		CHECK(&tally, invalidate(&self->vm, cmds, n), answer(0, n, 0),
		      "n = %u, after k = %u", n, i);
	}
	expect_tally(_metadata, &tally);
	expect_usable(_metadata, &self->vm);
}

/* More than any array has entries. */
#define FAULTS_MANY 1000000L

/*
 * Of several, the first one counts, and the others are serviced as well: how
 * many of them there were depends on how the kernel cuts the array into pieces,
 * but not whether the SMMU has raised an error for each.
 */
static void check_faults(struct __test_metadata *_metadata,
			 FIXTURE_DATA(injected) * self, struct tally *tally,
			 const struct smmu_cmd *cmds, unsigned int n,
			 unsigned int k, long times)
{
	long injected;

	ASSERT_TRUE(faults_set(&faults, FAULT_TIMES, times));
	CHECK(tally, invalidate(&self->vm, cmds, n), answer(EIO, k, ILL),
	      "n = %u, first of them k = %u", n, k);
	injected = times - faults_left(&faults);
	EXPECT_LE(1, injected);
	self->errors += injected;
	expect_errors(_metadata, &self->before, self->errors);

	ASSERT_TRUE(faults_set(&faults, FAULT_TIMES, 0));
	CHECK(tally, invalidate(&self->vm, cmds, n), answer(0, n, 0),
	      "n = %u, after several", n);
}

TEST_F_TIMEOUT(injected, several_apart, HANG_SECONDS)
{
	static const unsigned int intervals[] = { 1, 2, 3, 7, 31, 62, 63, 64,
						  100, 200 };
	struct smmu_cmd cmds[POSITIONS];
	struct tally tally = {};
	uint64_t single = 0;
	unsigned int i;

	fill_good(cmds, ARRAY_SIZE(cmds));
	for (i = 0; i < ARRAY_SIZE(intervals); i++) {
		unsigned int m = intervals[i];

		/*
		 * Every m-th is counted from when the kernel was booted. So let
		 * there be one, wherever it may be, and count from there.
		 */
		ASSERT_TRUE(faults_set(&faults, FAULT_INTERVAL, m));
		ASSERT_TRUE(faults_at(&faults, 0, 1));
		EXPECT_EQ(EIO, invalidate(&self->vm, cmds, m).err);
		self->errors++;
		EXPECT_EQ(0, faults_left(&faults));

		check_faults(_metadata, self, &tally, cmds, ARRAY_SIZE(cmds),
			     m - 1, FAULTS_MANY);
		single += 2;
	}
	/* Or else there were never several. */
	EXPECT_LT(single, self->errors);
	expect_tally(_metadata, &tally);
	expect_usable(_metadata, &self->vm);
}

TEST_F_TIMEOUT(injected, several_in_a_row, HANG_SECONDS)
{
	static const unsigned int rows[] = { 2, 3, 10, 63, 64, 200 };
	struct smmu_cmd cmds[POSITIONS];
	struct tally tally = {};
	unsigned int i, j;

	fill_good(cmds, ARRAY_SIZE(cmds));
	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		for (j = 0; j < ARRAY_SIZE(borders); j++) {
			ASSERT_TRUE(faults_at(&faults, borders[j], 0));
			check_faults(_metadata, self, &tally, cmds,
				     ARRAY_SIZE(cmds), borders[j], rows[i]);
		}
	}
	expect_tally(_metadata, &tally);
	expect_usable(_metadata, &self->vm);
}

/* A caller that sends what is not complete until nothing is left gets there. */
TEST_F_TIMEOUT(injected, resume_until_done, HANG_SECONDS)
{
	struct smmu_cmd cmds[POSITIONS];
	uint64_t seed = env_number("IOMMUFD_SMMUV3_SEED", random_seed());
	uint64_t rng = seed | 1;
	unsigned int round, failures = 0;
	struct tally tally = {};

	TH_LOG("IOMMUFD_SMMUV3_SEED=%#llx", (unsigned long long)seed);
	fill_good(cmds, ARRAY_SIZE(cmds));
	for (round = 0; round < 60; round++) {
		unsigned int n = 1 + rng_below(&rng, ARRAY_SIZE(cmds));
		unsigned int left = n;

		/* In the end even those have a chance that never come alone. */
		ASSERT_TRUE(faults_set(&faults, FAULT_PROBABILITY,
				       round % 3 * 20 + 2));
		while (left) {
			struct answer got;
			long injected;

			ASSERT_TRUE(faults_at(&faults, 0, FAULTS_MANY));
			got = invalidate(&self->vm, cmds + n - left, left);
			injected = FAULTS_MANY - faults_left(&faults);
			self->errors += injected;
			failures += !!injected;
			ASSERT_LE(got.num, left);
			if (injected) {
				ASSERT_LT(got.num, left);
				CHECK(&tally, got, answer(EIO, got.num, ILL),
				      "%u left of %u", left, n);
			} else {
				CHECK(&tally, got, answer(0, left, 0),
				      "%u left of %u", left, n);
			}
			if (tally.logged)
				break;
			left -= got.num;
		}
		expect_errors(_metadata, &self->before, self->errors);
		if (tally.logged)
			break;
	}
	EXPECT_NE(0, failures);
	expect_tally(_metadata, &tally);
	ASSERT_TRUE(faults_begin(&faults));
	expect_usable(_metadata, &self->vm);
}

/*
 * One that the SMMU finds fault with at j, and at k one that the kernel does:
 * the first one counts, and the SMMU never sees what comes after the kernel's.
 */
TEST_F_TIMEOUT(injected, and_not_accepted, HANG_SECONDS)
{
	static const unsigned int at[] = { 0, 1, 2, 61, 62, 63, 64, 65, 125,
					   126, 127, 198, 199 };
	const unsigned int n = POSITIONS;
	struct smmu_cmd cmds[POSITIONS];
	struct tally tally = {};
	struct arena arena;
	unsigned int i, l;

	arena_init(_metadata, &arena, sizeof(cmds));
	for (i = 0; i < ARRAY_SIZE(at); i++) {
		for (l = 0; l < ARRAY_SIZE(at); l++) {
			unsigned int j = at[i], k = at[l];

			fill_good(cmds, n);
			ASSERT_TRUE(faults_at(&faults, j, 1));
			CHECK(&tally,
			      invalidate_array(&self->vm,
					       arena_put(&arena, cmds, n, 16,
							 k * 16),
					       16, n),
			      j < k ? answer(EIO, j, ILL) :
				      answer(EFAULT, k, 0),
			      "j = %u, hole at %u", j, k);
			self->errors += j < k;
			EXPECT_EQ(j >= k, faults_left(&faults));

			cmds[k] = l % 2 ? bad_opcode() : bad_vsid();
			ASSERT_TRUE(faults_at(&faults, j, 1));
			CHECK(&tally, invalidate(&self->vm, cmds, n),
			      answer(EIO, j < k ? j : k, ILL),
			      "j = %u, not accepted at %u", j, k);
			self->errors += j < k;
			EXPECT_EQ(j >= k, faults_left(&faults));
		}
	}
	arena_free(&arena);
	expect_tally(_metadata, &tally);
	ASSERT_TRUE(faults_begin(&faults));
	expect_usable(_metadata, &self->vm);
}

/* Only processes that ask for it get errors. */
TEST_F(injected, chosen_by_process)
{
	struct smmu_cmd cmds[3];
	struct tally tally = {};

	fill_good(cmds, 3);
	ASSERT_TRUE(faults_write(&faults, FAULT_TASK_FILTER, "Y"));
	ASSERT_TRUE(faults_at(&faults, 1, 1));
	CHECK(&tally, invalidate(&self->vm, cmds, 3), answer(0, 3, 0),
	      "before");
	EXPECT_EQ(1, faults_left(&faults));
	ASSERT_TRUE(make_it_fail(true));
	check_fault(_metadata, self, &tally, cmds, 3, 1);
	ASSERT_TRUE(make_it_fail(false));
	ASSERT_TRUE(faults_at(&faults, 1, 1));
	CHECK(&tally, invalidate(&self->vm, cmds, 3), answer(0, 3, 0),
	      "not any longer");
	EXPECT_EQ(1, faults_left(&faults));
	expect_tally(_metadata, &tally);
}

#define TRACING "/sys/kernel/tracing"

/* Lines of the trace that have all of these words. */
static unsigned int count_in_trace(const char *event, const char *word)
{
	unsigned int lines = 0;
	char line[512];
	FILE *trace = fopen(TRACING "/trace", "r");

	if (!trace)
		return 0;
	while (fgets(line, sizeof(line), trace))
		lines += strstr(line, event) && strstr(line, word);
	fclose(trace);
	return lines;
}

/* Who watches the queue by its tracepoints sees the batch and the error. */
TEST_F(injected, traced)
{
	struct smmu_cmd cmds[5];
	struct tally tally = {};
	bool mounted = false;
	int fd;

	if (access(TRACING "/trace", F_OK)) {
		mounted = !mount("tracefs", TRACING, "tracefs", 0, NULL);
		if (!mounted)
			SKIP(return, "tracefs cannot be mounted");
	}
	fill_good(cmds, 5);
	fd = open(TRACING "/trace", O_WRONLY | O_TRUNC);
	ASSERT_LE(0, fd);
	close(fd);
	EXPECT_TRUE(write_text(TRACING "/events/arm_smmu_v3/enable", "1"));
	check_fault(_metadata, self, &tally, cmds, 5, 3);
	EXPECT_TRUE(write_text(TRACING "/events/arm_smmu_v3/enable", "0"));

	EXPECT_EQ(1, count_in_trace(" arm_smmu_cmdq_error: ", "error=ill "));
	EXPECT_EQ(1, count_in_trace(" arm_smmu_cmdq_error: ", "action=replace "));
	EXPECT_LE(1, count_in_trace(" arm_smmu_cmdq_batch: ", "cmds=5 sync=1"));
	EXPECT_EQ(0, count_in_trace(" arm_smmu_cmdq_replay: ", ""));
	if (mounted)
		umount(TRACING);
	expect_tally(_metadata, &tally);
}

/* Guests must not be able to fill the log of the host. */
TEST_F_TIMEOUT(injected, log_is_not_flooded, HANG_SECONDS)
{
	const unsigned int errors = 2000;
	struct smmu_cmd cmd = cmd_elsewhere();
	struct tally tally = {};
	unsigned int i, lines = 0;
	struct kmsg kmsg = {};
	double seconds;

	kmsg_mark(&kmsg);
	if (kmsg.fd < 0)
		SKIP(return, "/dev/kmsg cannot be read");
	/* Something shows when those of other tests are some seconds ago. */
	for (i = 0; i < 100 && !lines; i++) {
		check_fault(_metadata, self, &tally, &cmd, 1, 0);
		sleep_seconds(0.1);
		lines = kmsg_count_smmu(&kmsg);
	}
	EXPECT_NE(0, lines);

	ASSERT_TRUE(faults_at(&faults, 0, errors));
	seconds = now_seconds();
	for (i = 0; i < errors; i++)
		CHECK(&tally, invalidate(&self->vm, &cmd, 1),
		      answer(EIO, 0, ILL), "error %u", i);
	seconds = now_seconds() - seconds;
	self->errors += errors;
	expect_tally(_metadata, &tally);
	EXPECT_EQ(0, faults_left(&faults));

	lines += kmsg_count_smmu(&kmsg);
	close(kmsg.fd);
	TH_LOG("%u errors in %.3f s, %u lines", errors, seconds, lines);
	/* As usual in the kernel: 10 in 5 seconds, and how many there were. */
	EXPECT_LE(lines, 12 * (3 + seconds / 5));
	expect_usable(_metadata, &self->vm);
}

/* ---- Where the interrupt of an error goes ---- */

FIXTURE(gerror)
{
	struct vm vm;
	struct kmsg kmsg;
	struct cmdq_stats before;
	uint64_t errors;
};

FIXTURE_VARIANT(gerror)
{
	/* The submitter is pinned to the first CPU. */
	bool pinned;
	/* The interrupt goes to the first or second CPU; or else anywhere. */
	bool routed;
	unsigned int nth;
};

FIXTURE_VARIANT_ADD(gerror, anywhere) {};

FIXTURE_VARIANT_ADD(gerror, submitting_cpu)
{
	.pinned = true,
	.routed = true,
};

FIXTURE_VARIANT_ADD(gerror, other_cpu)
{
	.pinned = true,
	.routed = true,
	.nth = 1,
};

FIXTURE_VARIANT_ADD(gerror, submitter_moves) { .routed = true, };

FIXTURE_SETUP(gerror)
{
	if (variant->routed && !gerror.n)
		SKIP(return, "no interrupt arm-smmu-v3-gerror whose CPUs can be chosen");
	if (nr_cpus() <= variant->nth)
		SKIP(return, "there is only one CPU");
	if (!setup_vm(_metadata, &self->vm, duts[0]) ||
	    !setup_faults(_metadata, &self->kmsg, &self->before))
		return;
	/* Before it is pinned: where it may run tells which CPUs there are. */
	ASSERT_LE(0, nth_cpu(0));
	if (variant->routed)
		ASSERT_TRUE(gerror_route(&gerror, nth_cpu(variant->nth)));
	if (variant->pinned)
		ASSERT_TRUE(pin_to(nth_cpu(0)));
}

FIXTURE_TEARDOWN(gerror)
{
	gerror_restore(&gerror);
	faults_restore(&faults);
	expect_errors(_metadata, &self->before, self->errors);
	vm_close(&self->vm);
	check_kmsg(_metadata, &self->kmsg);
}

/*
 * Who waits for the queue with interrupts disabled must not wait for one: that
 * ends with a time-out, which the driver counts, and expect_errors() looks for.
 */
TEST_F_TIMEOUT(gerror, no_stall, HANG_SECONDS)
{
	const unsigned int calls = 64;
	unsigned int i;
	struct smmu_cmd cmds[100];
	const unsigned int n = ARRAY_SIZE(cmds);
	struct tally tally = {};
	struct cmdq_stats now;

	fill_good(cmds, n);
	for (i = 0; i < calls; i++) {
		unsigned int k = i * 37 % n;

		if (variant->routed && !variant->pinned)
			ASSERT_TRUE(pin_to(nth_cpu(i)));
		ASSERT_TRUE(faults_at(&faults, k, 1));
		CHECK(&tally, invalidate(&self->vm, cmds, n),
		      answer(EIO, k, ILL), "call %u, k = %u", i, k);
		self->errors++;
	}
	expect_tally(_metadata, &tally);
	expect_errors(_metadata, &self->before, self->errors);
	ASSERT_TRUE(cmdq_stats_read(&faults, &now));
	now.serviced_inline -= self->before.serviced_inline;
	TH_LOG("%llu of %llu errors serviced by the submitter",
	       (unsigned long long)now.serviced_inline,
	       (unsigned long long)self->errors);
	/* The interrupt has to wait, and so nobody else can have done it. */
	if (variant->pinned && variant->nth == 0)
		EXPECT_EQ(self->errors, now.serviced_inline);
	expect_usable(_metadata, &self->vm);
}

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
