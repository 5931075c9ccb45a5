// SPDX-License-Identifier: GPL-2.0-only
/*
 * ioctl(IOMMU_HWPT_INVALIDATE) on the vIOMMU of a real SMMUv3, by way of a vfio
 * device: each answer is held against what the uAPI promises, and where there
 * is a device that does DMA on demand, so is what the caches of the SMMU hold.
 *
 * The device has to be bound to vfio-pci and is chosen by
 *
 *	IOMMUFD_SMMUV3_DEVICE	its PCI address, such as 0000:00:02.0
 *	IOMMUFD_SMMUV3_DEVICE2	another one behind the same SMMU, for tests of
 *				two VMs
 *
 * Without these, QEMU's edu devices are taken (and given to vfio-pci meanwhile
 * if they have no driver). Only an edu can show what DMA sees: "-device
 * edu,dma_mask=0xffffffffffff", once or twice, on a machine with
 * "iommu=smmuv3" and "-global arm-smmuv3.stage=nested".
 *
 *	IOMMUFD_SMMUV3_SECONDS	how long the stress test runs, 5 unless set
 *	IOMMUFD_SMMUV3_SEED	makes it repeat what it did in another run
 *
 * Some tests have the SMMU raise errors. That takes a kernel with
 * CONFIG_ARM_SMMU_V3_FAULT_INJECTION, whose settings in debugfs they change, as
 * they do the CPUs of the interrupts by which SMMUs tell of errors. All of these
 * are in the end what they were before.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>

#include "kselftest_harness.h"
#include "iommufd_arm_smmuv3.h"

/* Nothing takes that long, on the slowest of machines, unless it hangs. */
#define HANG_SECONDS 120

/* The sizes at which a kernel might cut an array into pieces, and 1. */
static const unsigned int borders[] = { 1, 62, 63, 64, 65, 126, 127, 199 };

static struct dut duts[2];

/* How to have the SMMU of the first one raise errors, and where that shows. */
static struct faults faults;
static struct gerror gerror;

/* ---- Helpers that use the harness ---- */

/* Calls that got a wrong answer, by what was wrong with it. */
struct tally {
	unsigned int calls;
	unsigned int wrong_errno;
	unsigned int wrong_entry_num;
	unsigned int wrong_code;
	unsigned int logged;
};

/* Enough to see what is wrong, without thousands of lines. */
#define TALLY_LOG_MAX 4

static bool tally_add(struct tally *tally, struct answer got,
		      struct answer want)
{
	bool wrong = got.err != want.err || got.num != want.num ||
		     got.code != want.code;

	tally->calls++;
	tally->wrong_errno += got.err != want.err;
	tally->wrong_entry_num += got.num != want.num;
	tally->wrong_code += got.code != want.code;
	return wrong && tally->logged++ < TALLY_LOG_MAX;
}

static const char *err_name(int err)
{
	static const struct {
		int err;
		const char *name;
	} names[] = {
		{ 0, "0" },
		{ E2BIG, "E2BIG" },
		{ EFAULT, "EFAULT" },
		{ EINTR, "EINTR" },
		{ EINVAL, "EINVAL" },
		{ EIO, "EIO" },
		{ ENOENT, "ENOENT" },
		{ ENOMEM, "ENOMEM" },
		{ EOPNOTSUPP, "EOPNOTSUPP" },
		{ ETIMEDOUT, "ETIMEDOUT" },
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(names); i++)
		if (names[i].err == err)
			return names[i].name;
	return strerror(err);
}

/* Holds an answer against the right one; fmt says what was asked. */
#define CHECK(_tally, _got, _want, _fmt, ...)                                 \
	do {                                                                  \
		struct answer __got = (_got), __want = (_want);               \
									      \
		if (tally_add(_tally, __got, __want))                         \
			TH_LOG(_fmt ": got (%s, %u, code %u), want (%s, %u, code %u)", \
			       ##__VA_ARGS__, err_name(__got.err), __got.num, \
			       __got.code, err_name(__want.err), __want.num,  \
			       __want.code);                                  \
	} while (0)

/* All of them were right, and there were some. */
static void expect_tally(struct __test_metadata *_metadata,
			 const struct tally *tally)
{
	EXPECT_NE(0, tally->calls);
	EXPECT_EQ(0, tally->wrong_errno);
	EXPECT_EQ(0, tally->wrong_entry_num);
	EXPECT_EQ(0, tally->wrong_code);
}

static bool setup_vm(struct __test_metadata *_metadata, struct vm *vm,
		     const struct dut *dut)
{
	/* A test that was killed cannot have cleaned up. */
	faults_restore(&faults);
	gerror_restore(&gerror);
	if (!vm_open(vm, dut))
		return true;
	if (vm->skip)
		SKIP(return false, "%s", vm->error);
	TH_LOG("%s", vm->error);
	ASSERT_TRUE(vm->skip);
	return false;
}

/* Whatever a test did, the kernel must not have complained. */
static void check_kmsg(struct __test_metadata *_metadata, struct kmsg *kmsg)
{
	unsigned int bad = 0;
	char record[1024];

	while (kmsg_next_bad(kmsg, record, sizeof(record))) {
		if (bad++ < TALLY_LOG_MAX)
			TH_LOG("kernel log: %s", record);
	}
	EXPECT_EQ(0, bad);
	if (kmsg->fd >= 0)
		close(kmsg->fd);
}

static const char *seen_name(enum seen seen)
{
	static const char * const names[] = {
		[SEEN_NEITHER] = "neither",
		[SEEN_OLD] = "old",
		[SEEN_NEW] = "new",
		[SEEN_EITHER] = "old or new",
	};

	return names[seen];
}

static void expect_sight(struct __test_metadata *_metadata, const char *when,
			 const enum seen got[2], enum seen a, enum seen b)
{
	enum seen want[2] = { a, b };
	int i;

	for (i = 0; i < 2; i++) {
		bool right = want[i] == SEEN_EITHER ? got[i] != SEEN_NEITHER :
						      got[i] == want[i];

		if (!right)
			TH_LOG("%s: DMA reads the %s content of page %c, not the %s one",
			       when, seen_name(got[i]), "AB"[i],
			       seen_name(want[i]));
		EXPECT_TRUE(right);
	}
}

/* The last look of an experiment, and the first two are what they have to be. */
static void expect_dma(struct __test_metadata *_metadata, struct vm *vm,
		       const char *when, enum seen a, enum seen b)
{
	unsigned int last = vm->looks;
	struct sights sights;

	ASSERT_EQ(0, dma_end(vm, &sights));
	expect_sight(_metadata, "before the change", sights.page[0], SEEN_OLD,
		     SEEN_OLD);
	expect_sight(_metadata, "before the invalidation", sights.page[1],
		     SEEN_OLD, SEEN_OLD);
	expect_sight(_metadata, when, sights.page[last], a, b);
}

/* The SMMU still does what it should: a plain experiment of two commands. */
static void expect_usable(struct __test_metadata *_metadata, struct vm *vm)
{
	struct smmu_cmd cmds[2] = {
		cmd_tlbi_va(ASID, IOVA_A),
		cmd_tlbi_va(ASID, IOVA_B),
	};
	struct tally tally = {};

	if (vm->edu)
		ASSERT_EQ(0, dma_begin(vm, CHANGE_PAGES));
	CHECK(&tally, invalidate(vm, cmds, 2), answer(0, 2, 0), "afterwards");
	expect_tally(_metadata, &tally);
	if (vm->edu)
		expect_dma(_metadata, vm, "afterwards", SEEN_NEW, SEEN_NEW);
}

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

/* ---- What arrays are made of ---- */

static struct smmu_cmd cmd_elsewhere(void)
{
	return cmd_tlbi_va(ASID, IOVA_ELSEWHERE);
}

/*
 * @n good commands: the first invalidates page A and the last one, if it is not
 * the first, page B.
 */
static void fill_good(struct smmu_cmd *cmds, unsigned int n)
{
	unsigned int i;

	for (i = 0; i < n; i++)
		cmds[i] = cmd_elsewhere();
	if (n > 1)
		cmds[n - 1] = cmd_tlbi_va(ASID, IOVA_B);
	if (n > 0)
		cmds[0] = cmd_tlbi_va(ASID, IOVA_A);
}

static struct smmu_cmd bad_opcode(void)
{
	/* What a VMM has no reason to forward. */
	return cmd_make(OP_SYNC, 0);
}

static struct smmu_cmd bad_reserved_bit(void)
{
	return cmd_flip(cmd_elsewhere(), BIT_SSEC);
}

static struct smmu_cmd bad_vsid(void)
{
	return cmd_cfgi_cd(VSID_UNLINKED);
}

static struct smmu_cmd bad_range(void)
{
	/* TTL is reserved if TG is 0. */
	return cmd_set(cmd_elsewhere(), 73, 72, 3);
}

/* Memory that ends at a page that cannot be read. */
struct arena {
	uint8_t *map;
	size_t readable;
};

static void arena_init(struct __test_metadata *_metadata, struct arena *arena,
		       size_t readable)
{
	size_t page = page_size();

	arena->readable = (readable + page - 1) / page * page;
	arena->map = mmap(NULL, arena->readable + page, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, arena->map);
	ASSERT_EQ(0, munmap(arena->map + arena->readable, page));
	/* So that nothing else is mapped there meanwhile, it is no hole. */
	ASSERT_EQ(arena->map + arena->readable,
		  mmap(arena->map + arena->readable, page, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
		       0));
}

static void arena_free(struct arena *arena)
{
	munmap(arena->map, arena->readable + page_size());
}

/* @len bytes before the end. */
static uint8_t *arena_at(struct arena *arena, size_t len)
{
	return arena->map + arena->readable - len;
}

/*
 * Entries @stride bytes apart, zero in between, so that @bytes of them can be
 * read. What does not fit is left out.
 */
static void *arena_put(struct arena *arena, const struct smmu_cmd *cmds,
		       unsigned int n, size_t stride, size_t bytes)
{
	uint8_t *start = arena_at(arena, bytes);
	unsigned int i;

	memset(start, 0, bytes);
	for (i = 0; i < n && i * stride < bytes; i++) {
		size_t left = bytes - i * stride;

		memcpy(start + i * stride, &cmds[i],
		       left < sizeof(*cmds) ? left : sizeof(*cmds));
	}
	return start;
}

/* ---- The contract, one row after the other ---- */

FIXTURE(contract)
{
	struct vm vm;
	struct kmsg kmsg;
	struct smmu_cmd *cmds;
};

FIXTURE_SETUP(contract)
{
	size_t size = (ENTRY_NUM_MAX + 1) * sizeof(*self->cmds);

	kmsg_mark(&self->kmsg);
	if (!setup_vm(_metadata, &self->vm, &duts[0]))
		return;
	self->cmds = mmap(NULL, size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->cmds);
}

FIXTURE_TEARDOWN(contract)
{
	vm_close(&self->vm);
	check_kmsg(_metadata, &self->kmsg);
}

/* A VMM finds out by this flag that it can rely on the rest. */
TEST_F(contract, hw_info_flag)
{
	const struct iommu_hw_info_arm_smmuv3 *hw = &self->vm.hw;

	TH_LOG("%s: IDR0 %#x, IDR1 %#x, IDR3 %#x, IDR5 %#x, flags %#x",
	       duts[0].bdf, hw->idr[0], hw->idr[1], hw->idr[3], hw->idr[5],
	       hw->flags);
	EXPECT_TRUE(hw->flags &
		    IOMMU_HW_INFO_ARM_SMMUV3_INVALIDATE_ERROR_CODE);
}

TEST_F_TIMEOUT(contract, all_done, HANG_SECONDS)
{
	static const unsigned int sizes[] = { 1, 2, 62, 63, 64, 65, 126, 127,
					      200, 4096 };
	struct tally tally = {};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		fill_good(self->cmds, sizes[i]);
		CHECK(&tally, invalidate(&self->vm, self->cmds, sizes[i]),
		      answer(0, sizes[i], 0), "n = %u", sizes[i]);
	}
	expect_tally(_metadata, &tally);
}

TEST_F_TIMEOUT(contract, all_done_dma, HANG_SECONDS)
{
	static const unsigned int sizes[] = { 1, 2, 64, 65, 4096 };
	struct tally tally = {};
	unsigned int i;

	if (!self->vm.edu)
		SKIP(return, "only an edu device does DMA on demand");
	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		fill_good(self->cmds, sizes[i]);
		ASSERT_EQ(0, dma_begin(&self->vm, CHANGE_PAGES));
		CHECK(&tally, invalidate(&self->vm, self->cmds, sizes[i]),
		      answer(0, sizes[i], 0), "n = %u", sizes[i]);
		expect_dma(_metadata, &self->vm, "afterwards", SEEN_NEW,
			   sizes[i] > 1 ? SEEN_NEW : SEEN_OLD);
	}
	expect_tally(_metadata, &tally);
}

/* That DMA sees the new page is worth nothing if it does so anyhow. */
TEST_F_TIMEOUT(contract, stale_without_invalidation, HANG_SECONDS)
{
	struct smmu_cmd other[] = {
		cmd_elsewhere(),
		cmd_tlbi_va(ASID_2, IOVA_A),
		cmd_tlbi_va(ASID_2, IOVA_B),
		cmd_make((uint64_t)ASID_2 << 48 | OP_TLBI_NH_ASID, 0),
	};
	struct tally tally = {};

	if (!self->vm.edu)
		SKIP(return, "only an edu device does DMA on demand");
	ASSERT_EQ(0, dma_begin(&self->vm, CHANGE_PAGES));
	CHECK(&tally, invalidate(&self->vm, other, ARRAY_SIZE(other)),
	      answer(0, ARRAY_SIZE(other), 0), "other addresses and ASIDs");
	expect_tally(_metadata, &tally);
	expect_dma(_metadata, &self->vm, "afterwards", SEEN_OLD, SEEN_OLD);

	/* Nor does a TLBI have an effect on a CD. */
	ASSERT_EQ(0, dma_begin(&self->vm, CHANGE_CD));
	CHECK(&tally, invalidate(&self->vm, other, ARRAY_SIZE(other)),
	      answer(0, ARRAY_SIZE(other), 0), "TLBI for a CD");
	expect_tally(_metadata, &tally);
	expect_dma(_metadata, &self->vm, "afterwards", SEEN_OLD, SEEN_OLD);
}

/* n = 0 asks whether the type is supported, and looks at nothing else. */
TEST_F(contract, probe)
{
	struct iommu_hwpt_invalidate arg;
	struct tally tally = {};

	arg = invalidate_arg(&self->vm, self->cmds, sizeof(*self->cmds), 0);
	CHECK(&tally, invalidate_call(&self->vm, &arg), answer(0, 0, 0),
	      "the right type");

	arg = invalidate_arg(&self->vm, NULL, 0, 0);
	CHECK(&tally, invalidate_call(&self->vm, &arg), answer(0, 0, 0),
	      "the right type, no array");

	arg = invalidate_arg(&self->vm, (void *)-1UL, -1U, 0);
	CHECK(&tally, invalidate_call(&self->vm, &arg), answer(0, 0, 0),
	      "the right type, impossible array");

	arg = invalidate_arg(&self->vm, NULL, 0, 0);
	arg.data_type = IOMMU_HWPT_INVALIDATE_DATA_VTD_S1;
	CHECK(&tally, invalidate_call(&self->vm, &arg), answer(EINVAL, 0, 0),
	      "another type");

	arg = invalidate_arg(&self->vm, NULL, 0, 0);
	arg.data_type = 0x80000001;
	CHECK(&tally, invalidate_call(&self->vm, &arg), answer(EINVAL, 0, 0),
	      "a type that does not exist");

	arg = invalidate_arg(&self->vm, NULL, 0, 0);
	arg.hwpt_id = self->vm.s1_id;
	CHECK(&tally, invalidate_call(&self->vm, &arg),
	      answer(EOPNOTSUPP, 0, 0), "the nested HWPT");

	arg = invalidate_arg(&self->vm, NULL, 0, 0);
	arg.hwpt_id = self->vm.s2_id;
	CHECK(&tally, invalidate_call(&self->vm, &arg), answer(EINVAL, 0, 0),
	      "the paging HWPT");

	arg = invalidate_arg(&self->vm, NULL, 0, 0);
	arg.hwpt_id = -1U;
	CHECK(&tally, invalidate_call(&self->vm, &arg), answer(ENOENT, 0, 0),
	      "no object");

	arg = invalidate_arg(&self->vm, NULL, 0, 0);
	arg.out_driver_error_code = ILL;
	CHECK(&tally, invalidate_call(&self->vm, &arg), answer(0, 0, 0),
	      "an old error code in the struct");

	expect_tally(_metadata, &tally);
}

TEST_F(contract, bad_argument)
{
	const unsigned int len = sizeof(*self->cmds);
	struct iommu_hwpt_invalidate arg;
	struct tally tally = {};

	fill_good(self->cmds, 3);

	arg = invalidate_arg(&self->vm, NULL, len, 3);
	CHECK(&tally, invalidate_call(&self->vm, &arg), answer(EINVAL, 0, 0),
	      "no array");

	arg = invalidate_arg(&self->vm, self->cmds, len, ENTRY_NUM_MAX + 1);
	CHECK(&tally, invalidate_call(&self->vm, &arg), answer(EINVAL, 0, 0),
	      "one entry more than is allowed");

	arg = invalidate_arg(&self->vm, self->cmds, len, -1U);
	CHECK(&tally, invalidate_call(&self->vm, &arg), answer(EINVAL, 0, 0),
	      "2^32 - 1 entries");

	/* 2^28 entries of 16 bytes are 0 bytes in 32 bits. */
	arg = invalidate_arg(&self->vm, self->cmds, len, 1U << 28);
	CHECK(&tally, invalidate_call(&self->vm, &arg), answer(EINVAL, 0, 0),
	      "2^28 entries");

	arg = invalidate_arg(&self->vm, self->cmds, len, 3);
	arg.data_type = IOMMU_HWPT_INVALIDATE_DATA_VTD_S1;
	CHECK(&tally, invalidate_call(&self->vm, &arg), answer(EINVAL, 0, 0),
	      "another type");

	arg = invalidate_arg(&self->vm, self->cmds, len, 3);
	arg.hwpt_id = -1U;
	CHECK(&tally, invalidate_call(&self->vm, &arg), answer(ENOENT, 0, 0),
	      "no object");

	arg = invalidate_arg(&self->vm, self->cmds, len, 3);
	arg.hwpt_id = self->vm.ioas_id;
	CHECK(&tally, invalidate_call(&self->vm, &arg), answer(EINVAL, 0, 0),
	      "an IOAS");

	arg = invalidate_arg(&self->vm, self->cmds, len, 3);
	arg.hwpt_id = self->vm.s2_id;
	CHECK(&tally, invalidate_call(&self->vm, &arg), answer(EINVAL, 0, 0),
	      "the paging HWPT");

	arg = invalidate_arg(&self->vm, self->cmds, len, 3);
	arg.hwpt_id = self->vm.s1_id;
	CHECK(&tally, invalidate_call(&self->vm, &arg),
	      answer(EOPNOTSUPP, 0, 0), "the nested HWPT");

	arg = invalidate_arg(&self->vm, self->cmds, len, 3);
	arg.hwpt_id = -1U;
	arg.out_driver_error_code = 0x80000000;
	CHECK(&tally, invalidate_call(&self->vm, &arg), answer(ENOENT, 0, 0),
	      "no object, and an old error code in the struct");

	expect_tally(_metadata, &tally);
}

/* The usual rules for the size of a struct. What is refused is left as it is. */
TEST_F(contract, struct_size)
{
	struct {
		struct iommu_hwpt_invalidate arg;
		uint32_t more[8];
	} large;
	struct tally tally = {};

	fill_good(self->cmds, 3);

	memset(&large, 0, sizeof(large));
	large.arg = invalidate_arg(&self->vm, self->cmds, 16, 3);
	large.arg.size = sizeof(large);
	CHECK(&tally, invalidate_call(&self->vm, &large.arg), answer(0, 3, 0),
	      "larger, the rest zero");
	EXPECT_EQ(sizeof(large), large.arg.size);

	memset(&large, 0, sizeof(large));
	large.arg = invalidate_arg(&self->vm, self->cmds, 16, 3);
	large.arg.size = sizeof(large);
	large.more[7] = 1;
	CHECK(&tally, invalidate_call(&self->vm, &large.arg),
	      answer(E2BIG, 3, 0), "larger, the rest not zero");

	memset(&large, 0, sizeof(large));
	large.arg = invalidate_arg(&self->vm, self->cmds, 16, 3);
	large.arg.size = sizeof(large.arg) - 4;
	CHECK(&tally, invalidate_call(&self->vm, &large.arg),
	      answer(EINVAL, 3, 0), "smaller");

	expect_tally(_metadata, &tally);
}

/* A program that uses one struct for all of its calls, and never clears it. */
TEST_F(contract, struct_reused)
{
	struct iommu_hwpt_invalidate arg;
	struct tally tally = {};
	int i;

	arg = invalidate_arg(&self->vm, self->cmds, 16, 3);
	for (i = 0; i < 3; i++) {
		fill_good(self->cmds, 3);
		self->cmds[1] = bad_opcode();
		arg.entry_num = 3;
		CHECK(&tally, invalidate_call(&self->vm, &arg),
		      answer(EIO, 1, ILL), "a bad entry");

		/* An error without a code takes the old one away. */
		arg.data_uptr = (uintptr_t)NULL;
		arg.entry_num = 3;
		CHECK(&tally, invalidate_call(&self->vm, &arg),
		      answer(EINVAL, 0, 0), "no array");

		arg.data_uptr = (uintptr_t)self->cmds;
		arg.entry_num = 3;
		CHECK(&tally, invalidate_call(&self->vm, &arg),
		      answer(EIO, 1, ILL), "the bad entry again");

		/* So does success. */
		fill_good(self->cmds, 3);
		arg.entry_num = 3;
		CHECK(&tally, invalidate_call(&self->vm, &arg),
		      answer(0, 3, 0), "without the bad entry");
	}
	expect_tally(_metadata, &tally);
}

/* Nobody can be told anything if the struct cannot be written. */
TEST_F(contract, output_unwritable)
{
	struct iommu_hwpt_invalidate *arg;

	arg = mmap(NULL, page_size(), PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, arg);
	fill_good(self->cmds, 3);
	*arg = invalidate_arg(&self->vm, self->cmds, 16, 3);
	ASSERT_EQ(0, mprotect(arg, page_size(), PROT_READ));
	EXPECT_EQ(-1, ioctl(self->vm.iommufd, IOMMU_HWPT_INVALIDATE, arg));
	EXPECT_EQ(EFAULT, errno);
	munmap(arg, page_size());
	expect_usable(_metadata, &self->vm);
}

/* As many as are allowed, and around the largest contiguous allocation. */
TEST_F_TIMEOUT(contract, many, 2 * HANG_SECONDS)
{
	static const unsigned int sizes[] = { 262144, 262145,
					      ENTRY_NUM_MAX - 1,
					      ENTRY_NUM_MAX };
	struct tally tally = {};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		unsigned int n = sizes[i];

		fill_good(self->cmds, n);
		CHECK(&tally, invalidate(&self->vm, self->cmds, n),
		      answer(0, n, 0), "n = %u", n);
		self->cmds[n - 1] = bad_opcode();
		CHECK(&tally, invalidate(&self->vm, self->cmds, n),
		      answer(EIO, n - 1, ILL), "n = %u, the last one is bad",
		      n);
	}
	expect_tally(_metadata, &tally);
}

TEST_F_TIMEOUT(contract, many_dma, HANG_SECONDS)
{
	struct tally tally = {};

	if (!self->vm.edu)
		SKIP(return, "only an edu device does DMA on demand");
	fill_good(self->cmds, ENTRY_NUM_MAX);
	ASSERT_EQ(0, dma_begin(&self->vm, CHANGE_PAGES));
	CHECK(&tally, invalidate(&self->vm, self->cmds, ENTRY_NUM_MAX),
	      answer(0, ENTRY_NUM_MAX, 0), "n = %u", ENTRY_NUM_MAX);
	expect_tally(_metadata, &tally);
	expect_dma(_metadata, &self->vm, "afterwards", SEEN_NEW, SEEN_NEW);
}

/* Of several failures of different kinds, the first one counts. */
TEST_F(contract, first_failure_counts)
{
	const unsigned int len = sizeof(*self->cmds);
	struct arena arena;
	struct tally tally = {};
	uint8_t *entries;

	arena_init(_metadata, &arena, 200 * 24);
	fill_good(self->cmds, 200);
	self->cmds[66] = bad_vsid();
	self->cmds[67] = bad_opcode();
	CHECK(&tally, invalidate(&self->vm, self->cmds, 200),
	      answer(EIO, 66, ILL), "vSID, opcode");

	CHECK(&tally,
	      invalidate_array(&self->vm,
			       arena_put(&arena, self->cmds, 200, len,
					 67 * len),
			       len, 200),
	      answer(EIO, 66, ILL), "vSID, hole");

	CHECK(&tally,
	      invalidate_array(&self->vm,
			       arena_put(&arena, self->cmds, 200, len,
					 66 * len),
			       len, 200),
	      answer(EFAULT, 66, 0), "hole where the vSID would be");

	entries = arena_put(&arena, self->cmds, 200, 24, 200 * 24);
	entries[67 * 24 + 16] = 1;
	CHECK(&tally, invalidate_array(&self->vm, entries, 24, 200),
	      answer(EIO, 66, ILL), "vSID, tail");

	entries[65 * 24 + 23] = 1;
	CHECK(&tally, invalidate_array(&self->vm, entries, 24, 200),
	      answer(E2BIG, 65, 0), "tail, vSID");
	expect_tally(_metadata, &tally);
	arena_free(&arena);
}

/* ---- Which commands are legal ---- */

/* What a field takes to exist in a command of this SMMU. */
enum cond {
	ALWAYS,
	IF_ASID16,	/* IDR0.ASID16: else the upper half is RES0 */
	IF_RIL,		/* IDR3.RIL: range invalidation */
	IF_RIL_DS,	/* and IDR5.DS: 52-bit addresses with small granules */
	IF_SUBSTREAMS,	/* IDR1.SSIDSIZE */
};

/* All fields there are beside the opcode: figures of IHI 0070, chapter 4. */
static const struct field {
	uint8_t op;
	uint8_t hi;
	uint8_t lo;
	enum cond cond;
} fields[] = {
	/* 4.3.3 CMD_CFGI_CD */
	{ OP_CFGI_CD, 31, 12, IF_SUBSTREAMS },		/* SubstreamID */
	{ OP_CFGI_CD, 63, 32, ALWAYS },			/* StreamID */
	{ OP_CFGI_CD, 64, 64, ALWAYS },			/* Leaf */
	/* 4.3.4 CMD_CFGI_CD_ALL */
	{ OP_CFGI_CD_ALL, 63, 32, ALWAYS },		/* StreamID */
	/* 4.4.2 CMD_TLBI_NH_ALL */
	{ OP_TLBI_NH_ALL, 47, 32, ALWAYS },		/* VMID */
	/* 4.4.2 CMD_TLBI_NH_ASID */
	{ OP_TLBI_NH_ASID, 47, 32, ALWAYS },		/* VMID */
	{ OP_TLBI_NH_ASID, 55, 48, ALWAYS },		/* ASID */
	{ OP_TLBI_NH_ASID, 63, 56, IF_ASID16 },		/* ASID */
	/* 4.4.2 CMD_TLBI_NH_VA */
	{ OP_TLBI_NH_VA, 16, 12, IF_RIL },		/* NUM */
	{ OP_TLBI_NH_VA, 24, 20, IF_RIL },		/* SCALE */
	{ OP_TLBI_NH_VA, 25, 25, IF_RIL_DS },		/* SCALE */
	{ OP_TLBI_NH_VA, 47, 32, ALWAYS },		/* VMID */
	{ OP_TLBI_NH_VA, 55, 48, ALWAYS },		/* ASID */
	{ OP_TLBI_NH_VA, 63, 56, IF_ASID16 },		/* ASID */
	{ OP_TLBI_NH_VA, 64, 64, ALWAYS },		/* Leaf */
	{ OP_TLBI_NH_VA, 73, 72, IF_RIL },		/* TTL */
	{ OP_TLBI_NH_VA, 75, 74, IF_RIL },		/* TG */
	{ OP_TLBI_NH_VA, 127, 76, ALWAYS },		/* Address */
	/* 4.4.2 CMD_TLBI_NH_VAA */
	{ OP_TLBI_NH_VAA, 16, 12, IF_RIL },		/* NUM */
	{ OP_TLBI_NH_VAA, 24, 20, IF_RIL },		/* SCALE */
	{ OP_TLBI_NH_VAA, 25, 25, IF_RIL_DS },		/* SCALE */
	{ OP_TLBI_NH_VAA, 47, 32, ALWAYS },		/* VMID */
	{ OP_TLBI_NH_VAA, 64, 64, ALWAYS },		/* Leaf */
	{ OP_TLBI_NH_VAA, 73, 72, IF_RIL },		/* TTL */
	{ OP_TLBI_NH_VAA, 75, 74, IF_RIL },		/* TG */
	{ OP_TLBI_NH_VAA, 127, 76, ALWAYS },		/* Address */
	/* 4.4.4 CMD_TLBI_NSNH_ALL has none */
	/* 4.5.1 CMD_ATC_INV */
	{ OP_ATC_INV, 9, 9, IF_SUBSTREAMS },		/* Global */
	{ OP_ATC_INV, 11, 11, IF_SUBSTREAMS },		/* SSV */
	{ OP_ATC_INV, 31, 12, IF_SUBSTREAMS },		/* SubstreamID */
	{ OP_ATC_INV, 63, 32, ALWAYS },			/* StreamID */
	{ OP_ATC_INV, 69, 64, ALWAYS },			/* Size */
	{ OP_ATC_INV, 127, 76, ALWAYS },		/* Address */
};

/* What IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 takes, by its kernel-doc. */
static const uint8_t supported[] = {
	OP_TLBI_NSNH_ALL, OP_TLBI_NH_VA, OP_TLBI_NH_VAA, OP_TLBI_NH_ALL,
	OP_TLBI_NH_ASID, OP_ATC_INV, OP_CFGI_CD, OP_CFGI_CD_ALL,
};

static bool op_supported(uint8_t op)
{
	return memchr(supported, op, sizeof(supported));
}

static bool op_has_sid(uint8_t op)
{
	return op == OP_CFGI_CD || op == OP_CFGI_CD_ALL || op == OP_ATC_INV;
}

static bool op_has_range(uint8_t op)
{
	return op == OP_TLBI_NH_VA || op == OP_TLBI_NH_VAA;
}

static bool hw_ats(const struct vm *vm)
{
	return vm->hw.idr[0] & 1 << 10;
}

static bool hw_ds(const struct vm *vm)
{
	return vm->hw.idr[5] & 1 << 7;
}

static bool hw_has(const struct vm *vm, enum cond cond)
{
	bool ril = vm->hw.idr[3] & 1 << 10;

	switch (cond) {
	case IF_ASID16:
		return vm->hw.idr[0] & 1 << 12;
	case IF_RIL:
		return ril;
	case IF_RIL_DS:
		return ril && hw_ds(vm);
	case IF_SUBSTREAMS:
		return vm->hw.idr[1] >> 6 & 0x1f;
	default:
		return true;
	}
}

/* 4.4.1.1: which values of the fields of a range go together. */
static bool range_legal(const struct vm *vm, struct smmu_cmd cmd)
{
	unsigned int num = cmd_get(cmd, 16, 12);
	unsigned int scale = cmd_get(cmd, 25, 20);
	unsigned int ttl = cmd_get(cmd, 73, 72);
	unsigned int tg = cmd_get(cmd, 75, 74);

	if (tg == 0)
		return !num && !scale && !ttl;
	if (!num && !scale && !ttl)
		return false;
	if (tg == 2 && ttl == 1)
		return hw_ds(vm);
	return true;
}

static bool cmd_legal(const struct vm *vm, struct smmu_cmd cmd)
{
	uint8_t op = cmd_get(cmd, 7, 0);
	struct smmu_cmd rest = cmd_set(cmd, 7, 0, 0);
	unsigned int i;

	if (!op_supported(op))
		return false;
	for (i = 0; i < ARRAY_SIZE(fields); i++)
		if (fields[i].op == op && hw_has(vm, fields[i].cond))
			rest = cmd_set(rest, fields[i].hi, fields[i].lo, 0);
	if (rest.w[0] || rest.w[1])
		return false;

	if (op_has_sid(op) && cmd_get(cmd, 63, 32) != vm->vsid)
		return false;
	if (op_has_range(op) && !range_legal(vm, cmd))
		return false;
	/* 52 stands for all addresses. */
	if (op == OP_ATC_INV && cmd_get(cmd, 69, 64) > 52)
		return false;
	return op != OP_ATC_INV || hw_ats(vm);
}

/*
 * Who knows what a real device without an ATC makes of an invalidation of it:
 * some time out, and some take the machine down.
 */
static bool cmd_harmless(const struct vm *vm, struct smmu_cmd cmd)
{
	return cmd_get(cmd, 7, 0) != OP_ATC_INV || !cmd_legal(vm, cmd) ||
	       vm->atc || vm->edu;
}

/* The opcode by itself, and what makes it legal if anything does. */
static struct smmu_cmd cmd_plain(const struct vm *vm, uint8_t op)
{
	return cmd_make((op_has_sid(op) ? (uint64_t)vm->vsid << 32 : 0) | op,
			0);
}

/* Something in each field that the command has. */
static struct smmu_cmd cmd_full(const struct vm *vm, uint8_t op)
{
	struct smmu_cmd cmd = cmd_plain(vm, op);
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(fields); i++) {
		const struct field *f = &fields[i];

		if (f->op == op && hw_has(vm, f->cond) && f->lo != 32)
			cmd = cmd_set(cmd, f->hi, f->lo, 0xa5a5a5a5a5a5a5a5);
	}
	if (op == OP_ATC_INV)
		cmd = cmd_set(cmd, 69, 64, 5);
	if (op_has_range(op) && hw_has(vm, IF_RIL)) {
		/* 4 KB, so that no bit of the address is below the granule. */
		cmd = cmd_set(cmd, 75, 74, 1);
		cmd = cmd_set(cmd, 73, 72, 3);
	}
	if (!op_has_sid(op) && op != OP_TLBI_NSNH_ALL)
		cmd = cmd_set(cmd, 47, 32, 0xbeef);
	return cmd;
}

/* What has to come back for an array of @k good commands and @cmd. */
static struct answer answer_for(const struct vm *vm, struct smmu_cmd cmd,
				unsigned int k)
{
	return cmd_legal(vm, cmd) ? answer(0, k + 1, 0) : answer(EIO, k, ILL);
}

FIXTURE(opcode)
{
	struct vm vm;
	struct kmsg kmsg;
};

FIXTURE_VARIANT(opcode)
{
	unsigned int good_before;
	/* In the upper half of the first word, which is often a stream ID. */
	uint32_t upper;
	bool reserved_bit;
};

FIXTURE_VARIANT_ADD(opcode, alone) {};

FIXTURE_VARIANT_ADD(opcode, with_vsid) { .upper = VSID, };

FIXTURE_VARIANT_ADD(opcode, secure) { .reserved_bit = true, };

FIXTURE_VARIANT_ADD(opcode, after_others) { .good_before = 65, };

FIXTURE_SETUP(opcode)
{
	kmsg_mark(&self->kmsg);
	setup_vm(_metadata, &self->vm, &duts[0]);
}

FIXTURE_TEARDOWN(opcode)
{
	vm_close(&self->vm);
	check_kmsg(_metadata, &self->kmsg);
}

TEST_F_TIMEOUT(opcode, all_256, HANG_SECONDS)
{
	unsigned int k = variant->good_before;
	struct smmu_cmd cmds[66];
	struct tally tally = {};
	unsigned int op;

	ASSERT_LT(k, ARRAY_SIZE(cmds));
	fill_good(cmds, k);
	for (op = 0; op < 256; op++) {
		struct smmu_cmd cmd = cmd_plain(&self->vm, op);

		if (variant->upper)
			cmd = cmd_set(cmd, 63, 32, variant->upper);
		if (variant->reserved_bit)
			cmd = cmd_flip(cmd, BIT_SSEC);
		if (!cmd_harmless(&self->vm, cmd))
			continue;
		cmds[k] = cmd;
		/* VSID is out of the way of VMIDs and ASIDs, except here. */
		if (variant->upper && op == OP_TLBI_NSNH_ALL)
			ASSERT_FALSE(cmd_legal(&self->vm, cmd));
		CHECK(&tally, invalidate(&self->vm, cmds, k + 1),
		      answer_for(&self->vm, cmd, k), "opcode %#04x", op);
	}
	expect_tally(_metadata, &tally);
}

FIXTURE(bits)
{
	struct vm vm;
	struct kmsg kmsg;
};

FIXTURE_VARIANT(bits)
{
	uint8_t op;
};

FIXTURE_VARIANT_ADD(bits, cfgi_cd) { .op = OP_CFGI_CD, };

FIXTURE_VARIANT_ADD(bits, cfgi_cd_all) { .op = OP_CFGI_CD_ALL, };

FIXTURE_VARIANT_ADD(bits, tlbi_nh_all) { .op = OP_TLBI_NH_ALL, };

FIXTURE_VARIANT_ADD(bits, tlbi_nh_asid) { .op = OP_TLBI_NH_ASID, };

FIXTURE_VARIANT_ADD(bits, tlbi_nh_va) { .op = OP_TLBI_NH_VA, };

FIXTURE_VARIANT_ADD(bits, tlbi_nh_vaa) { .op = OP_TLBI_NH_VAA, };

FIXTURE_VARIANT_ADD(bits, tlbi_nsnh_all) { .op = OP_TLBI_NSNH_ALL, };

FIXTURE_VARIANT_ADD(bits, atc_inv) { .op = OP_ATC_INV, };

FIXTURE_SETUP(bits)
{
	kmsg_mark(&self->kmsg);
	setup_vm(_metadata, &self->vm, &duts[0]);
}

FIXTURE_TEARDOWN(bits)
{
	vm_close(&self->vm);
	check_kmsg(_metadata, &self->kmsg);
}

static void check_bits(struct __test_metadata *_metadata, struct vm *vm,
		       struct smmu_cmd base)
{
	struct tally tally = {};
	int bit;

	if (cmd_harmless(vm, base))
		CHECK(&tally, invalidate(vm, &base, 1),
		      answer_for(vm, base, 0), "as it is");
	for (bit = 0; bit < 128; bit++) {
		struct smmu_cmd cmd = cmd_flip(base, bit);

		if (!cmd_harmless(vm, cmd))
			continue;
		CHECK(&tally, invalidate(vm, &cmd, 1), answer_for(vm, cmd, 0),
		      "bit %d inverted: %016llx %016llx", bit,
		      (unsigned long long)le64toh(cmd.w[0]),
		      (unsigned long long)le64toh(cmd.w[1]));
	}
	expect_tally(_metadata, &tally);
}

/* Each bit by itself on top of nothing but the opcode. */
TEST_F_TIMEOUT(bits, each_alone, HANG_SECONDS)
{
	check_bits(_metadata, &self->vm, cmd_plain(&self->vm, variant->op));
}

/* Each bit of a command that uses all of its fields. */
TEST_F_TIMEOUT(bits, each_of_full, HANG_SECONDS)
{
	struct smmu_cmd base = cmd_full(&self->vm, variant->op);

	/* Or else it tests nothing. */
	if (variant->op != OP_ATC_INV || hw_ats(&self->vm))
		ASSERT_TRUE(cmd_legal(&self->vm, base));
	check_bits(_metadata, &self->vm, base);
}

/* Values that are reserved although each of their bits can be legal. */
FIXTURE(values)
{
	struct vm vm;
	struct kmsg kmsg;
};

FIXTURE_VARIANT(values)
{
	uint8_t op;
};

FIXTURE_VARIANT_ADD(values, tlbi_nh_va) { .op = OP_TLBI_NH_VA, };

FIXTURE_VARIANT_ADD(values, tlbi_nh_vaa) { .op = OP_TLBI_NH_VAA, };

FIXTURE_VARIANT_ADD(values, atc_inv) { .op = OP_ATC_INV, };

FIXTURE_SETUP(values)
{
	kmsg_mark(&self->kmsg);
	setup_vm(_metadata, &self->vm, &duts[0]);
}

FIXTURE_TEARDOWN(values)
{
	vm_close(&self->vm);
	check_kmsg(_metadata, &self->kmsg);
}

static void check_sizes(struct __test_metadata *_metadata, struct vm *vm)
{
	struct tally tally = {};
	unsigned int size;

	for (size = 0; size < 64; size++) {
		struct smmu_cmd cmd = cmd_set(cmd_plain(vm, OP_ATC_INV), 69,
					      64, size);

		if (!cmd_harmless(vm, cmd))
			continue;
		CHECK(&tally, invalidate(vm, &cmd, 1), answer_for(vm, cmd, 0),
		      "size %u", size);
	}
	expect_tally(_metadata, &tally);
}

TEST_F_TIMEOUT(values, each, HANG_SECONDS)
{
	static const uint8_t nums[] = { 0, 1, 16, 31 };
	static const uint8_t scales[] = { 0, 1, 5, 31, 32, 63 };
	unsigned int i, num, scale, tg, ttl;
	struct tally tally = {};

	if (variant->op == OP_ATC_INV) {
		check_sizes(_metadata, &self->vm);
		return;
	}

	for (i = 0; i < ARRAY_SIZE(nums) * ARRAY_SIZE(scales) * 16; i++) {
		struct smmu_cmd cmd = cmd_plain(&self->vm, variant->op);

		tg = i % 4;
		ttl = i / 4 % 4;
		num = nums[i / 16 % ARRAY_SIZE(nums)];
		scale = scales[i / 16 / ARRAY_SIZE(nums)];
		cmd = cmd_set(cmd, 16, 12, num);
		cmd = cmd_set(cmd, 25, 20, scale);
		cmd = cmd_set(cmd, 73, 72, ttl);
		cmd = cmd_set(cmd, 75, 74, tg);
		CHECK(&tally, invalidate(&self->vm, &cmd, 1),
		      answer_for(&self->vm, cmd, 0),
		      "NUM %u SCALE %u TG %u TTL %u", num, scale, tg, ttl);
	}
	expect_tally(_metadata, &tally);
}

/* ---- What the legal ones do ---- */

FIXTURE(effect)
{
	struct vm vm;
	struct kmsg kmsg;
};

FIXTURE_VARIANT(effect)
{
	enum change change;
	struct smmu_cmd cmd;
	enum seen b;
	enum cond cond;
};

/* On a little-endian machine, as only constants can stand here. */
#if __BYTE_ORDER == __LITTLE_ENDIAN
#define CONST_CMD(w0, w1) { { (w0), (w1) } }
#else
#define CONST_CMD(w0, w1) { { __builtin_bswap64(w0), __builtin_bswap64(w1) } }
#endif

#define ASID_FIELD ((uint64_t)ASID << 48)
#define VSID_FIELD ((uint64_t)VSID << 32)

FIXTURE_VARIANT_ADD(effect, tlbi_nh_va)
{
	.cmd = CONST_CMD(OP_TLBI_NH_VA | ASID_FIELD, IOVA_A),
	.b = SEEN_OLD,
};

FIXTURE_VARIANT_ADD(effect, tlbi_nh_va_leaf)
{
	.cmd = CONST_CMD(OP_TLBI_NH_VA | ASID_FIELD, IOVA_A | 1),
	.b = SEEN_OLD,
};

/* NUM = 1, TG = 4 KB: two pages */
FIXTURE_VARIANT_ADD(effect, tlbi_nh_va_range)
{
	.cmd = CONST_CMD(OP_TLBI_NH_VA | ASID_FIELD | 1 << 12,
			 IOVA_A | 1 << 10 | 1),
	.b = SEEN_NEW,
	.cond = IF_RIL,
};

FIXTURE_VARIANT_ADD(effect, tlbi_nh_vaa)
{
	.cmd = CONST_CMD(OP_TLBI_NH_VAA, IOVA_A | 1),
	.b = SEEN_OLD,
};

/* SCALE = 1, TG = 4 KB, TTL = 3: two pages */
FIXTURE_VARIANT_ADD(effect, tlbi_nh_vaa_range)
{
	.cmd = CONST_CMD(OP_TLBI_NH_VAA | 1 << 20,
			 IOVA_A | 1 << 10 | 3 << 8 | 1),
	.b = SEEN_NEW,
	.cond = IF_RIL,
};

FIXTURE_VARIANT_ADD(effect, tlbi_nh_asid)
{
	.cmd = CONST_CMD(OP_TLBI_NH_ASID | ASID_FIELD, 0),
	.b = SEEN_NEW,
};

FIXTURE_VARIANT_ADD(effect, tlbi_nh_all)
{
	.cmd = CONST_CMD(OP_TLBI_NH_ALL, 0),
	.b = SEEN_NEW,
};

/* The host puts the VMID of the VM in place of what is there. */
FIXTURE_VARIANT_ADD(effect, tlbi_nh_all_vmid)
{
	.cmd = CONST_CMD(OP_TLBI_NH_ALL | 0xfffeULL << 32, 0),
	.b = SEEN_NEW,
};

FIXTURE_VARIANT_ADD(effect, tlbi_nsnh_all)
{
	.cmd = CONST_CMD(OP_TLBI_NSNH_ALL, 0),
	.b = SEEN_NEW,
};

FIXTURE_VARIANT_ADD(effect, cfgi_cd)
{
	.change = CHANGE_CD,
	.cmd = CONST_CMD(OP_CFGI_CD | VSID_FIELD, 1),
	.b = SEEN_NEW,
};

FIXTURE_VARIANT_ADD(effect, cfgi_cd_all)
{
	.change = CHANGE_CD,
	.cmd = CONST_CMD(OP_CFGI_CD_ALL | VSID_FIELD, 0),
	.b = SEEN_NEW,
};

FIXTURE_SETUP(effect)
{
	kmsg_mark(&self->kmsg);
	setup_vm(_metadata, &self->vm, &duts[0]);
}

FIXTURE_TEARDOWN(effect)
{
	vm_close(&self->vm);
	check_kmsg(_metadata, &self->kmsg);
}

TEST_F_TIMEOUT(effect, dma, HANG_SECONDS)
{
	struct tally tally = {};

	if (!self->vm.edu)
		SKIP(return, "only an edu device does DMA on demand");
	if (!hw_has(&self->vm, variant->cond))
		SKIP(return, "the SMMU does not have the command");
	ASSERT_EQ(0, dma_begin(&self->vm, variant->change));
	CHECK(&tally, invalidate(&self->vm, &variant->cmd, 1),
	      answer(0, 1, 0), "the command");
	expect_tally(_metadata, &tally);
	expect_dma(_metadata, &self->vm, "afterwards", SEEN_NEW, variant->b);
}

/* ---- A bad entry at each position of an array ---- */

FIXTURE(position)
{
	struct vm vm;
	struct kmsg kmsg;
	struct arena arena;
};

FIXTURE_VARIANT(position)
{
	struct smmu_cmd (*bad)(void);
	unsigned int stride;
	int err;
	uint32_t code;
};

FIXTURE_VARIANT_ADD(position, opcode)
{
	.bad = bad_opcode,
	.stride = 16,
	.err = EIO,
	.code = ILL,
};

FIXTURE_VARIANT_ADD(position, reserved_bit)
{
	.bad = bad_reserved_bit,
	.stride = 16,
	.err = EIO,
	.code = ILL,
};

FIXTURE_VARIANT_ADD(position, vsid)
{
	.bad = bad_vsid,
	.stride = 16,
	.err = EIO,
	.code = ILL,
};

FIXTURE_VARIANT_ADD(position, range_with_stride)
{
	.bad = bad_range,
	.stride = 24,
	.err = EIO,
	.code = ILL,
};

/* The entry has something where there must be zeroes. */
FIXTURE_VARIANT_ADD(position, tail)
{
	.stride = 24,
	.err = E2BIG,
};

/* The entry cannot be read. */
FIXTURE_VARIANT_ADD(position, hole)
{
	.stride = 16,
	.err = EFAULT,
};

#define POSITIONS 200

FIXTURE_SETUP(position)
{
	kmsg_mark(&self->kmsg);
	if (!setup_vm(_metadata, &self->vm, &duts[0]))
		return;
	arena_init(_metadata, &self->arena, POSITIONS * 24);
}

FIXTURE_TEARDOWN(position)
{
	vm_close(&self->vm);
	check_kmsg(_metadata, &self->kmsg);
}

/* An array of @n with the bad entry at @k. */
static void *position_put(FIXTURE_DATA(position) * self,
			  const FIXTURE_VARIANT(position) * variant,
			  const struct smmu_cmd *cmds, unsigned int n,
			  unsigned int k)
{
	unsigned int stride = variant->stride;
	struct smmu_cmd copy[POSITIONS];
	uint8_t *entries;

	memcpy(copy, cmds, n * sizeof(*cmds));
	if (variant->bad)
		copy[k] = variant->bad();
	if (variant->err == EFAULT)
		return arena_put(&self->arena, copy, n, stride, k * stride);
	entries = arena_put(&self->arena, copy, n, stride, n * stride);
	if (variant->err == E2BIG)
		entries[k * stride + sizeof(*cmds) + k % 8] = 1;
	return entries;
}

/* Each k of each n. */
TEST_F_TIMEOUT(position, count, 4 * HANG_SECONDS)
{
	struct smmu_cmd cmds[POSITIONS];
	struct tally tally = {};
	unsigned int n, k;

	for (n = 1; n <= POSITIONS; n++) {
		fill_good(cmds, n);
		for (k = 0; k < n; k++)
			CHECK(&tally,
			      invalidate_array(&self->vm,
					       position_put(self, variant,
							    cmds, n, k),
					       variant->stride, n),
			      answer(variant->err, k, variant->code),
			      "n = %u, k = %u", n, k);
	}
	expect_tally(_metadata, &tally);
}

/* Entries 0 and k - 1 are said to be complete: they must be. */
TEST_F_TIMEOUT(position, dma, HANG_SECONDS)
{
	struct smmu_cmd cmds[POSITIONS];
	struct tally tally = {};
	char when[32];
	unsigned int i;

	if (!self->vm.edu)
		SKIP(return, "only an edu device does DMA on demand");
	for (i = 0; i < ARRAY_SIZE(borders); i++) {
		unsigned int k = borders[i];

		fill_good(cmds, k);
		cmds[k] = cmd_elsewhere();
		ASSERT_EQ(0, dma_begin(&self->vm, CHANGE_PAGES));
		CHECK(&tally,
		      invalidate_array(&self->vm,
				       position_put(self, variant, cmds, k + 1,
						    k),
				       variant->stride, k + 1),
		      answer(variant->err, k, variant->code), "k = %u", k);
		snprintf(when, sizeof(when), "k = %u", k);
		expect_dma(_metadata, &self->vm, when, SEEN_NEW,
			   k > 1 ? SEEN_NEW : SEEN_OLD);
	}
	expect_tally(_metadata, &tally);
}

/*
 * Entry k and what follows is not promised, done or not: a caller that sends it
 * again without the bad one gets it done.
 */
TEST_F_TIMEOUT(position, resume_dma, HANG_SECONDS)
{
	static const unsigned int ks[] = { 1, 63, 64, 126 };
	struct smmu_cmd cmds[POSITIONS];
	struct sights sights;
	struct tally tally = {};
	unsigned int i, n;

	if (!self->vm.edu)
		SKIP(return, "only an edu device does DMA on demand");
	for (i = 0; i < ARRAY_SIZE(ks); i++) {
		unsigned int k = ks[i];

		n = k + 3;
		fill_good(cmds, n);
		cmds[0] = cmd_elsewhere();
		cmds[k - 1] = cmd_tlbi_va(ASID, IOVA_A);
		ASSERT_EQ(0, dma_begin(&self->vm, CHANGE_PAGES));
		CHECK(&tally,
		      invalidate_array(&self->vm,
				       position_put(self, variant, cmds, n, k),
				       variant->stride, n),
		      answer(variant->err, k, variant->code), "k = %u", k);
		ASSERT_EQ(0, dma_look(&self->vm));
		CHECK(&tally,
		      invalidate(&self->vm, cmds + k + 1, n - k - 1),
		      answer(0, n - k - 1, 0), "from k = %u", k + 1);
		ASSERT_EQ(0, dma_end(&self->vm, &sights));
		expect_sight(_metadata, "before the invalidation",
			     sights.page[1], SEEN_OLD, SEEN_OLD);
		expect_sight(_metadata, "after the failure", sights.page[2],
			     SEEN_NEW, SEEN_EITHER);
		expect_sight(_metadata, "after the rest", sights.page[3],
			     SEEN_NEW, SEEN_NEW);
	}
	expect_tally(_metadata, &tally);
}

/* ---- The distance between entries ---- */

FIXTURE(entry_len)
{
	struct vm vm;
	struct kmsg kmsg;
	struct arena arena;
	struct smmu_cmd cmds[130];
	unsigned int len;
};

FIXTURE_VARIANT(entry_len)
{
	/* 0 stands for a page, whatever its size is. */
	unsigned int len;
};

FIXTURE_VARIANT_ADD(entry_len, 16) { .len = 16, };

FIXTURE_VARIANT_ADD(entry_len, 17) { .len = 17, };

FIXTURE_VARIANT_ADD(entry_len, 24) { .len = 24, };

FIXTURE_VARIANT_ADD(entry_len, 4096) { .len = 4096, };

FIXTURE_VARIANT_ADD(entry_len, page) {};

FIXTURE_SETUP(entry_len)
{
	kmsg_mark(&self->kmsg);
	if (!setup_vm(_metadata, &self->vm, &duts[0]))
		return;
	self->len = variant->len ?: page_size();
	arena_init(_metadata, &self->arena,
		   ARRAY_SIZE(self->cmds) * self->len);
	fill_good(self->cmds, ARRAY_SIZE(self->cmds));
}

FIXTURE_TEARDOWN(entry_len)
{
	vm_close(&self->vm);
	check_kmsg(_metadata, &self->kmsg);
}

TEST_F_TIMEOUT(entry_len, zero_tails, HANG_SECONDS)
{
	static const unsigned int sizes[] = { 1, 2, 63, 64, 65, 130 };
	struct tally tally = {};
	unsigned int i;
	void *entries;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		unsigned int n = sizes[i];

		entries = arena_put(&self->arena, self->cmds, n, self->len,
				    n * self->len);
		CHECK(&tally,
		      invalidate_array(&self->vm, entries, self->len, n),
		      answer(0, n, 0), "n = %u", n);
	}
	expect_tally(_metadata, &tally);
}

TEST_F_TIMEOUT(entry_len, zero_tails_dma, HANG_SECONDS)
{
	const unsigned int n = ARRAY_SIZE(self->cmds);
	struct tally tally = {};
	void *entries;

	if (!self->vm.edu)
		SKIP(return, "only an edu device does DMA on demand");
	entries = arena_put(&self->arena, self->cmds, n, self->len,
			    n * self->len);
	ASSERT_EQ(0, dma_begin(&self->vm, CHANGE_PAGES));
	CHECK(&tally, invalidate_array(&self->vm, entries, self->len, n),
	      answer(0, n, 0), "n = %u", n);
	expect_tally(_metadata, &tally);
	expect_dma(_metadata, &self->vm, "afterwards", SEEN_NEW, SEEN_NEW);
}

/*
 * One byte is not zero, each byte of the tail by turns. For entries that have
 * no tail, it is the first byte of the next one: no command begins with that.
 */
TEST_F_TIMEOUT(entry_len, nonzero_tails, HANG_SECONDS)
{
	static const unsigned int ks[] = { 0, 1, 62, 63, 64, 128 };
	const unsigned int n = ARRAY_SIZE(self->cmds);
	/* All of a short one, the ends of a long one. */
	unsigned int step = self->len > 64 ? self->len - 17 : 1;
	struct tally tally = {};
	unsigned int i, byte;
	uint8_t *entries;

	entries = arena_put(&self->arena, self->cmds, n, self->len,
			    n * self->len);
	for (i = 0; i < ARRAY_SIZE(ks); i++) {
		for (byte = 16; byte <= self->len; byte += step) {
			uint8_t *at = entries + ks[i] * self->len + byte;
			uint8_t was = *at;

			if (byte == self->len && byte > 16)
				break;
			*at = 1 << byte % 8;
			CHECK(&tally,
			      invalidate_array(&self->vm, entries, self->len,
					       n),
			      byte < self->len ? answer(E2BIG, ks[i], 0) :
						 answer(EIO, ks[i] + 1, ILL),
			      "byte %u of entry %u", byte, ks[i]);
			*at = was;
		}
	}
	expect_tally(_metadata, &tally);
}

/* What lies behind the last entry is none of the kernel's business. */
TEST_F(entry_len, behind_the_array)
{
	const unsigned int n = 65;
	struct tally tally = {};
	uint8_t *entries;

	entries = arena_put(&self->arena, self->cmds, n + 1, self->len,
			    (n + 1) * self->len);
	memset(entries + n * self->len, 0xff, self->len);
	CHECK(&tally, invalidate_array(&self->vm, entries, self->len, n),
	      answer(0, n, 0), "0xff behind it");
	entries = arena_put(&self->arena, self->cmds, n, self->len,
			    n * self->len);
	CHECK(&tally, invalidate_array(&self->vm, entries, self->len, n),
	      answer(0, n, 0), "a hole behind it");
	expect_tally(_metadata, &tally);
}

/* Less than a command, or more than a page, which is an arbitrary limit. */
FIXTURE(bad_entry_len)
{
	struct vm vm;
	struct kmsg kmsg;
	unsigned int len;
	/* Of zeroes, and of what is not zero. */
	uint8_t *entries[2];
};

FIXTURE_VARIANT(bad_entry_len)
{
	unsigned int pages;
	unsigned int bytes;
};

FIXTURE_VARIANT_ADD(bad_entry_len, 0) {};

FIXTURE_VARIANT_ADD(bad_entry_len, 1) { .bytes = 1, };

FIXTURE_VARIANT_ADD(bad_entry_len, 8) { .bytes = 8, };

FIXTURE_VARIANT_ADD(bad_entry_len, 15) { .bytes = 15, };

FIXTURE_VARIANT_ADD(bad_entry_len, 4097) { .bytes = 4097, };

FIXTURE_VARIANT_ADD(bad_entry_len, page_and_1) { .pages = 1, .bytes = 1, };

FIXTURE_VARIANT_ADD(bad_entry_len, most) { .bytes = -1U, };

FIXTURE_SETUP(bad_entry_len)
{
	struct smmu_cmd cmd = cmd_elsewhere();
	size_t size;
	int i;

	kmsg_mark(&self->kmsg);
	if (!setup_vm(_metadata, &self->vm, &duts[0]))
		return;
	self->len = variant->pages * page_size() + variant->bytes;
	size = 3 * (size_t)page_size() + 65536;
	for (i = 0; i < 2; i++) {
		self->entries[i] = mmap(NULL, size, PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		ASSERT_NE(MAP_FAILED, self->entries[i]);
		memset(self->entries[i], i ? 0xff : 0, size);
		memcpy(self->entries[i], &cmd, sizeof(cmd));
	}
}

FIXTURE_TEARDOWN(bad_entry_len)
{
	vm_close(&self->vm);
	check_kmsg(_metadata, &self->kmsg);
}

TEST_F(bad_entry_len, refused)
{
	struct tally tally = {};
	int i;

	for (i = 0; i < 2; i++) {
		struct answer want = answer(EINVAL, 0, 0);

		/* Pages of the host may be larger than that. */
		if (self->len >= 16 && self->len <= page_size())
			want = i ? answer(E2BIG, 0, 0) : answer(0, 1, 0);
		CHECK(&tally,
		      invalidate_array(&self->vm, self->entries[i], self->len,
				       1),
		      want, "n = 1, %s", i ? "not zero" : "zero");
		if (want.err != EINVAL)
			continue;
		CHECK(&tally,
		      invalidate_array(&self->vm, self->entries[i], self->len,
				       3),
		      want, "n = 3, %s", i ? "not zero" : "zero");
	}
	expect_tally(_metadata, &tally);
}

/* A probe looks at no entries. */
TEST_F(bad_entry_len, probe)
{
	struct tally tally = {};

	CHECK(&tally,
	      invalidate_array(&self->vm, self->entries[0], self->len, 0),
	      answer(0, 0, 0), "n = 0");
	expect_tally(_metadata, &tally);
}

/* ---- Where the array is ---- */

FIXTURE(memory)
{
	struct vm vm;
	struct kmsg kmsg;
	struct smmu_cmd cmds[POSITIONS];
};

FIXTURE_SETUP(memory)
{
	kmsg_mark(&self->kmsg);
	if (!setup_vm(_metadata, &self->vm, &duts[0]))
		return;
	fill_good(self->cmds, POSITIONS);
}

FIXTURE_TEARDOWN(memory)
{
	vm_close(&self->vm);
	check_kmsg(_metadata, &self->kmsg);
}

/* The array ends at the end of what can be read, or reaches beyond it. */
TEST_F_TIMEOUT(memory, hole_at_each_byte, HANG_SECONDS)
{
	static const unsigned int strides[] = { 16, 17, 24 };
	struct arena arena;
	struct tally tally = {};
	unsigned int s, i, byte;

	arena_init(_metadata, &arena, POSITIONS * 24);
	for (s = 0; s < ARRAY_SIZE(strides); s++) {
		unsigned int stride = strides[s];

		for (i = 0; i < ARRAY_SIZE(borders); i++) {
			unsigned int k = borders[i];

			for (byte = 0; byte < stride; byte++) {
				void *at = arena_put(&arena, self->cmds,
						     POSITIONS, stride,
						     k * stride + byte);

				CHECK(&tally,
				      invalidate_array(&self->vm, at, stride,
						       k + 1),
				      answer(EFAULT, k, 0),
				      "%u bytes of entry %u can be read", byte,
				      k);
				CHECK(&tally,
				      invalidate_array(&self->vm, at, stride,
						       k),
				      answer(0, k, 0),
				      "%u entries and %u bytes can be read", k,
				      byte);
			}
		}
	}
	expect_tally(_metadata, &tally);
	arena_free(&arena);
}

TEST_F_TIMEOUT(memory, hole_dma, HANG_SECONDS)
{
	static const unsigned int bytes[] = { 1, 8, 15 };
	struct arena arena;
	struct tally tally = {};
	unsigned int i;

	if (!self->vm.edu)
		SKIP(return, "only an edu device does DMA on demand");
	arena_init(_metadata, &arena, POSITIONS * 16);
	for (i = 0; i < ARRAY_SIZE(bytes); i++) {
		unsigned int k = 64 + i;
		void *at;

		fill_good(self->cmds, k);
		self->cmds[k] = cmd_elsewhere();
		at = arena_put(&arena, self->cmds, k + 1, 16,
			       k * 16 + bytes[i]);
		ASSERT_EQ(0, dma_begin(&self->vm, CHANGE_PAGES));
		CHECK(&tally, invalidate_array(&self->vm, at, 16, k + 1),
		      answer(EFAULT, k, 0), "%u bytes of entry %u", bytes[i],
		      k);
		expect_dma(_metadata, &self->vm, "afterwards", SEEN_NEW,
			   SEEN_NEW);
	}
	expect_tally(_metadata, &tally);
	arena_free(&arena);
}

TEST_F(memory, protection)
{
	size_t page = page_size();
	struct tally tally = {};
	void *map;

	map = mmap(NULL, page, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, map);
	/* Nobody has touched it: it is a page of zeroes, and 0 no opcode. */
	CHECK(&tally, invalidate_array(&self->vm, map, 16, 100),
	      answer(EIO, 0, ILL), "never touched");
	memcpy(map, self->cmds, 100 * 16);
	ASSERT_EQ(0, mprotect(map, page, PROT_READ));
	CHECK(&tally, invalidate_array(&self->vm, map, 16, 100),
	      answer(0, 100, 0), "read-only");
	ASSERT_EQ(0, mprotect(map, page, PROT_NONE));
	CHECK(&tally, invalidate_array(&self->vm, map, 16, 100),
	      answer(EFAULT, 0, 0), "no access");
	expect_tally(_metadata, &tally);
	munmap(map, page);
}

TEST_F(memory, not_ours)
{
	static const uint64_t addrs[] = {
		1,
		1ULL << 52,
		0x7fffffffffffffff,
		0x8000000000000000,
		0xffff000000000000,
		0xffff800000000000,
		0xfffffffffffffff0,
		0xffffffffffffffff,
	};
	struct tally tally = {};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(addrs); i++) {
		struct iommu_hwpt_invalidate arg =
			invalidate_arg(&self->vm, NULL, 16, 65);

		arg.data_uptr = addrs[i];
		CHECK(&tally, invalidate_call(&self->vm, &arg),
		      answer(EFAULT, 0, 0), "%#llx",
		      (unsigned long long)addrs[i]);
		arg = invalidate_arg(&self->vm, NULL, 24, 65);
		arg.data_uptr = addrs[i];
		CHECK(&tally, invalidate_call(&self->vm, &arg),
		      answer(EFAULT, 0, 0), "%#llx, entries of 24 bytes",
		      (unsigned long long)addrs[i]);
	}
	expect_tally(_metadata, &tally);
}

/* No entry has to be aligned to anything, nor lie in a single page. */
TEST_F(memory, alignment)
{
	struct arena arena;
	struct tally tally = {};
	unsigned int offset;

	arena_init(_metadata, &arena, 2 * page_size());
	for (offset = 0; offset < 32; offset++) {
		uint8_t *at = arena_at(&arena, page_size() + 65 * 8 + offset);

		memcpy(at, self->cmds, 130 * 16);
		CHECK(&tally, invalidate_array(&self->vm, at, 16, 130),
		      answer(0, 130, 0), "offset %u", offset);
	}
	expect_tally(_metadata, &tally);
	arena_free(&arena);
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

TEST_F_TIMEOUT(memory, hugepage, HANG_SECONDS)
{
	size_t huge = read_meminfo("Hugepagesize") * 1024;
	struct tally tally = {};
	uint8_t *map, *at, *aligned;
	unsigned int k;

	if (!huge)
		SKIP(return, "the kernel has no hugepages");
	/* Room for one at an aligned address, and something behind it. */
	map = mmap(NULL, 3 * huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		   0);
	ASSERT_NE(MAP_FAILED, map);
	aligned = map + (huge - (uintptr_t)map % huge) % huge;
	if (mmap(aligned, huge, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_FIXED, -1,
		 0) == MAP_FAILED)
		SKIP(return, "no free hugepage of %zu kB: write to /proc/sys/vm/nr_hugepages",
		     huge / 1024);

	/* Across the middle, and up to the end. */
	memcpy(aligned + huge / 2 - 65 * 16, self->cmds, 130 * 16);
	CHECK(&tally,
	      invalidate_array(&self->vm, aligned + huge / 2 - 65 * 16, 16,
			       130),
	      answer(0, 130, 0), "in the middle");
	for (k = 1; k < 130; k++) {
		at = aligned + huge - k * 16;
		memcpy(at, self->cmds, k * 16);
		CHECK(&tally, invalidate_array(&self->vm, at, 16, k),
		      answer(0, k, 0), "up to the end");
		CHECK(&tally, invalidate_array(&self->vm, at, 16, 130),
		      answer(EFAULT, k, 0), "beyond the end");
	}
	expect_tally(_metadata, &tally);
	munmap(map, 3 * huge);
}

static void check_file(struct __test_metadata *_metadata, struct vm *vm,
		       int fd, int flags)
{
	size_t page = page_size();
	struct smmu_cmd cmds[POSITIONS];
	struct tally tally = {};
	unsigned int k = 65;
	uint8_t *map;

	/* Three pages: data up to the end of the first, a hole, nothing. */
	fill_good(cmds, POSITIONS);
	ASSERT_EQ(0, ftruncate(fd, 2 * page));
	ASSERT_EQ((ssize_t)(k * 16),
		  pwrite(fd, cmds, k * 16, page - k * 16));
	map = mmap(NULL, 3 * page, PROT_READ, flags, fd, 0);
	ASSERT_NE(MAP_FAILED, map);

	CHECK(&tally, invalidate_array(vm, map + page - k * 16, 16, k),
	      answer(0, k, 0), "up to the end of the data");
	CHECK(&tally, invalidate_array(vm, map + page - k * 16, 16, k + 10),
	      answer(EIO, k, ILL), "on into the hole");

	ASSERT_EQ((ssize_t)(k * 16),
		  pwrite(fd, cmds, k * 16, 2 * page - k * 16));
	CHECK(&tally,
	      invalidate_array(vm, map + 2 * page - k * 16, 16, k + 10),
	      answer(EFAULT, k, 0), "beyond the end of the file");
	ASSERT_EQ(0, ftruncate(fd, page));
	CHECK(&tally,
	      invalidate_array(vm, map + page - k * 16, 16, k + 10),
	      answer(EFAULT, k, 0), "the file is cut off");
	expect_tally(_metadata, &tally);
	munmap(map, 3 * page);
}

TEST_F(memory, file_shared)
{
	int fd = memfd_create("commands", 0);

	ASSERT_LE(0, fd);
	check_file(_metadata, &self->vm, fd, MAP_SHARED);
	close(fd);
}

TEST_F(memory, file_private)
{
	int fd = memfd_create("commands", 0);

	ASSERT_LE(0, fd);
	check_file(_metadata, &self->vm, fd, MAP_PRIVATE);
	close(fd);
}

struct toggler {
	pthread_t thread;
	struct smmu_cmd *at;
	struct smmu_cmd values[2];
	bool stop;
};

static void *toggle(void *arg)
{
	struct toggler *t = arg;
	int word = t->values[0].w[0] == t->values[1].w[0];
	unsigned int i = 0;

	/* They differ in one word, so that no third value ever is there. */
	while (!__atomic_load_n(&t->stop, __ATOMIC_RELAXED))
		__atomic_store_n(&t->at->w[word], t->values[i++ % 2].w[word],
				 __ATOMIC_RELAXED);
	return NULL;
}

/*
 * What is checked is what is issued: if an entry that another thread changes
 * all the time could slip through as the bad one, the SMMU would raise an error
 * that shows in the kernel log.
 */
TEST_F_TIMEOUT(memory, changed_meanwhile, 4 * HANG_SECONDS)
{
	const struct smmu_cmd values[][2] = {
		{ cmd_elsewhere(), bad_reserved_bit() },
		{ cmd_elsewhere(), cmd_set(cmd_elsewhere(), 7, 0, 0xff) },
		{ cmd_elsewhere(), cmd_set(cmd_elsewhere(), 7, 0, OP_SYNC) },
		{ cmd_elsewhere(), bad_range() },
		{ cmd_cfgi_cd(VSID), cmd_cfgi_cd(VSID_UNLINKED) },
		{ cmd_cfgi_cd(VSID), cmd_flip(cmd_cfgi_cd(VSID), BIT_SSEC) },
	};
	static const unsigned int ks[] = { 0, 62, 63, 126 };
	struct smmu_cmd *cmds = self->cmds;
	const unsigned int n = 127;
	unsigned int v, i;

	for (v = 0; v < ARRAY_SIZE(values); v++) {
		for (i = 0; i < ARRAY_SIZE(ks); i++) {
			unsigned int k = ks[i], done = 0, refused = 0;
			struct tally tally = {};
			struct toggler toggler = {};
			double start = now_seconds();

			fill_good(cmds, n);
			cmds[k] = values[v][0];
			toggler.at = &cmds[k];
			memcpy(toggler.values, values[v], sizeof(values[v]));
			ASSERT_EQ(0, pthread_create(&toggler.thread, NULL,
						    toggle, &toggler));
			while ((done < 300 || refused < 300) &&
			       now_seconds() - start < HANG_SECONDS / 8) {
				struct answer got =
					invalidate(&self->vm, cmds, n);

				done += !got.err;
				refused += got.err == EIO;
				CHECK(&tally, got,
				      got.err ? answer(EIO, k, ILL) :
						answer(0, n, 0),
				      "case %u, k = %u", v, k);
			}
			__atomic_store_n(&toggler.stop, true,
					 __ATOMIC_RELAXED);
			pthread_join(toggler.thread, NULL);
			expect_tally(_metadata, &tally);
			/* Or else nothing was changed while it was read. */
			EXPECT_NE(0, done);
			EXPECT_NE(0, refused);
		}
	}
	expect_usable(_metadata, &self->vm);
}

struct protector {
	pthread_t thread;
	void *page;
	bool stop;
};

static void *protect(void *arg)
{
	struct protector *p = arg;
	unsigned int i = 0;

	while (!__atomic_load_n(&p->stop, __ATOMIC_RELAXED)) {
		mprotect(p->page, page_size(),
			 i++ % 2 ? PROT_NONE : PROT_READ);
		sched_yield();
	}
	return NULL;
}

/* The second page of an array can be read at times, and then again not. */
TEST_F_TIMEOUT(memory, unreadable_meanwhile, 2 * HANG_SECONDS)
{
	static const unsigned int ks[] = { 1, 62, 63, 64, 126 };
	const unsigned int n = 190;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(ks); i++) {
		unsigned int k = ks[i], done = 0, refused = 0;
		struct protector protector = {};
		struct tally tally = {};
		struct arena arena;
		double start = now_seconds();
		uint8_t *at;

		arena_init(_metadata, &arena, 2 * page_size());
		at = arena_at(&arena, page_size() + k * 16);
		fill_good(self->cmds, n);
		memcpy(at, self->cmds, n * 16);
		protector.page = arena_at(&arena, page_size());
		ASSERT_EQ(0, pthread_create(&protector.thread, NULL, protect,
					    &protector));
		while ((done < 50 || refused < 50) &&
		       now_seconds() - start < HANG_SECONDS / 8) {
			struct answer got =
				invalidate_array(&self->vm, at, 16, n);
			bool later = got.num > k && got.num < n;

			done += !got.err;
			refused += got.err == EFAULT;
			/* It may have become so after some of its entries. */
			CHECK(&tally, got,
			      got.err ? answer(EFAULT, later ? got.num : k, 0) :
					answer(0, n, 0),
			      "k = %u", k);
		}
		__atomic_store_n(&protector.stop, true, __ATOMIC_RELAXED);
		pthread_join(protector.thread, NULL);
		arena_free(&arena);
		expect_tally(_metadata, &tally);
		EXPECT_NE(0, done);
		EXPECT_NE(0, refused);
	}
}

/* ---- Which streams a VM may name ---- */

FIXTURE(vsid)
{
	struct vm vm;
	struct kmsg kmsg;
};

FIXTURE_SETUP(vsid)
{
	kmsg_mark(&self->kmsg);
	setup_vm(_metadata, &self->vm, &duts[0]);
}

FIXTURE_TEARDOWN(vsid)
{
	vm_close(&self->vm);
	check_kmsg(_metadata, &self->kmsg);
}

static void check_vsid(struct __test_metadata *_metadata, struct tally *tally,
		       struct vm *vm, uint32_t vsid, bool linked,
		       const char *what)
{
	static const uint8_t ops[] = { OP_CFGI_CD, OP_CFGI_CD_ALL, OP_ATC_INV };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(ops); i++) {
		struct smmu_cmd cmds[2] = {
			cmd_elsewhere(),
			cmd_make((uint64_t)vsid << 32 | ops[i], 0),
		};

		/* An ATC_INV that is legal is another test's. */
		if (ops[i] == OP_ATC_INV && linked)
			continue;
		CHECK(tally, invalidate(vm, cmds, 2),
		      linked ? answer(0, 2, 0) : answer(EIO, 1, ILL),
		      "%s: opcode %#04x, vSID %#x", what, ops[i], vsid);
	}
}

TEST_F(vsid, linked_and_unlinked)
{
	struct tally tally = {};
	uint32_t vsid;
	int bit;

	check_vsid(_metadata, &tally, &self->vm, VSID, true, "linked");
	/* The IDs of the host's own streams, among others. */
	for (vsid = 0; vsid < 512; vsid++)
		check_vsid(_metadata, &tally, &self->vm, vsid, false, "low");
	for (bit = 0; bit < 32; bit++)
		check_vsid(_metadata, &tally, &self->vm, VSID ^ 1U << bit,
			   false, "close");
	check_vsid(_metadata, &tally, &self->vm, -1U, false, "the last one");
	expect_tally(_metadata, &tally);
}

/* The IDs of one vIOMMU mean nothing to another. */
TEST_F(vsid, of_another_viommu)
{
	uint32_t viommu_id = self->vm.viommu_id;
	struct smmu_cmd cmd = cmd_elsewhere();
	struct tally tally = {};
	uint32_t s2_id, other_id;

	ASSERT_EQ(0, vm_alloc_s2(&self->vm, &s2_id));
	ASSERT_EQ(0, vm_alloc_viommu(&self->vm, s2_id, &other_id));

	self->vm.viommu_id = other_id;
	CHECK(&tally, invalidate(&self->vm, &cmd, 1), answer(0, 1, 0),
	      "a TLBI on the other vIOMMU");
	check_vsid(_metadata, &tally, &self->vm, VSID, false,
		   "on the other vIOMMU");
	self->vm.viommu_id = viommu_id;
	check_vsid(_metadata, &tally, &self->vm, VSID, true,
		   "on its own vIOMMU");
	expect_tally(_metadata, &tally);
	EXPECT_EQ(0, vm_destroy(&self->vm, other_id));
	EXPECT_EQ(0, vm_destroy(&self->vm, s2_id));
}

TEST_F(vsid, vdevice_destroyed)
{
	struct tally tally = {};

	ASSERT_EQ(0, vm_destroy(&self->vm, self->vm.vdevice_id));
	check_vsid(_metadata, &tally, &self->vm, VSID, false, "destroyed");
	ASSERT_EQ(0, vm_alloc_vdevice(&self->vm, VSID + 1,
				      &self->vm.vdevice_id));
	check_vsid(_metadata, &tally, &self->vm, VSID, false, "its old ID");
	check_vsid(_metadata, &tally, &self->vm, VSID + 1, true, "its new ID");
	ASSERT_EQ(0, vm_destroy(&self->vm, self->vm.vdevice_id));
	ASSERT_EQ(0, vm_alloc_vdevice(&self->vm, VSID, &self->vm.vdevice_id));
	check_vsid(_metadata, &tally, &self->vm, VSID, true, "linked again");
	expect_tally(_metadata, &tally);
	expect_usable(_metadata, &self->vm);
}

enum goes {
	VDEVICE,
	DEVICE,
	VIOMMU,
};

struct linker {
	pthread_t thread;
	struct vm *vm;
	enum goes what;
	bool stop;
	unsigned int rounds;
	/* What went wrong, if anything did. */
	const char *failed;
	int err;
};

static int relink_once(struct linker *l)
{
	struct vm *vm = l->vm;
	uint32_t id;

	switch (l->what) {
	case VDEVICE:
		l->failed = "destroy the vDEVICE";
		if (vm_destroy(vm, vm->vdevice_id))
			return -1;
		break;
	case DEVICE:
		/* Takes the vDEVICE with it. */
		close(vm->device);
		break;
	case VIOMMU:
		/* It is in use while another thread is in a call. */
		l->failed = "destroy the vIOMMU";
		while (vm_destroy(vm, vm->viommu_id))
			if (errno != EBUSY)
				return -1;
		break;
	}
	sched_yield();

	if (l->what == VIOMMU) {
		l->failed = "make the vIOMMU";
		if (vm_alloc_viommu(vm, vm->s2_id, &id))
			return -1;
		__atomic_store_n(&vm->viommu_id, id, __ATOMIC_RELAXED);
		return 0;
	}
	if (l->what == DEVICE) {
		l->failed = "open the device";
		if (vm_open_device(vm, &duts[0]))
			return -1;
	}
	l->failed = "make the vDEVICE";
	return vm_alloc_vdevice(vm, vm->vsid, &vm->vdevice_id);
}

/* Takes something away and brings it back, again and again. */
static void *relink(void *arg)
{
	struct linker *l = arg;

	while (!__atomic_load_n(&l->stop, __ATOMIC_RELAXED)) {
		if (relink_once(l)) {
			l->err = errno;
			return NULL;
		}
		l->rounds++;
	}
	l->failed = NULL;
	return NULL;
}

static void check_relink(struct __test_metadata *_metadata, struct vm *vm,
			 enum goes what)
{
	static const unsigned int ks[] = { 0, 62, 64, 126 };
	struct linker linker = { .vm = vm, .what = what };
	unsigned int done = 0, refused = 0, calls = 0;
	struct smmu_cmd cmds[128];
	struct tally tally = {};
	double start = now_seconds();

	ASSERT_EQ(0, pthread_create(&linker.thread, NULL, relink, &linker));
	while ((done < 100 || refused < 100 ||
		__atomic_load_n(&linker.rounds, __ATOMIC_RELAXED) < 20) &&
	       now_seconds() - start < HANG_SECONDS / 2) {
		unsigned int k = ks[calls++ % ARRAY_SIZE(ks)];
		struct answer got, want;

		fill_good(cmds, ARRAY_SIZE(cmds));
		if (what != VIOMMU)
			cmds[k] = cmd_cfgi_cd(VSID);
		want = what == VIOMMU ? answer(ENOENT, 0, 0) :
					answer(EIO, k, ILL);
		got = invalidate(vm, cmds, ARRAY_SIZE(cmds));
		done += !got.err;
		refused += got.err == want.err;
		CHECK(&tally, got,
		      got.err ? want : answer(0, ARRAY_SIZE(cmds), 0),
		      "k = %u", k);
	}
	__atomic_store_n(&linker.stop, true, __ATOMIC_RELAXED);
	pthread_join(linker.thread, NULL);
	if (linker.failed)
		TH_LOG("%s: %s", linker.failed, strerror(linker.err));
	EXPECT_EQ(NULL, linker.failed);
	expect_tally(_metadata, &tally);
	/* Or else nothing happened meanwhile. */
	EXPECT_LT(1, linker.rounds);
	EXPECT_NE(0, done);
	EXPECT_NE(0, refused);
}

TEST_F_TIMEOUT(vsid, vdevice_comes_and_goes, HANG_SECONDS)
{
	check_relink(_metadata, &self->vm, VDEVICE);
	expect_usable(_metadata, &self->vm);
}

TEST_F_TIMEOUT(vsid, device_comes_and_goes, HANG_SECONDS)
{
	check_relink(_metadata, &self->vm, DEVICE);
	/* Closing it has reset it, and detached it from its stage 1. */
	ASSERT_EQ(0, vm_attach(&self->vm, self->vm.s1_id));
	if (self->vm.edu)
		ASSERT_EQ(0, edu_enable(&self->vm));
	expect_usable(_metadata, &self->vm);
}

TEST_F_TIMEOUT(vsid, viommu_comes_and_goes, HANG_SECONDS)
{
	uint32_t viommu_id = self->vm.viommu_id;

	/* One that nothing else uses, so that it can be destroyed. */
	ASSERT_EQ(0, vm_alloc_viommu(&self->vm, self->vm.s2_id,
				     &self->vm.viommu_id));
	check_relink(_metadata, &self->vm, VIOMMU);
	self->vm.viommu_id = viommu_id;
	expect_usable(_metadata, &self->vm);
}

/* A vIOMMU outlives its device: what names no stream is still legal. */
TEST_F(vsid, device_gone)
{
	struct smmu_cmd cmds[65];
	struct tally tally = {};

	close(self->vm.device);
	self->vm.device = -1;
	fill_good(cmds, ARRAY_SIZE(cmds));
	CHECK(&tally, invalidate(&self->vm, cmds, ARRAY_SIZE(cmds)),
	      answer(0, ARRAY_SIZE(cmds), 0), "TLBI");
	check_vsid(_metadata, &tally, &self->vm, VSID, false, "gone");
	expect_tally(_metadata, &tally);
}

/* ---- Two VMs on one SMMU, equal in everything that they can choose ---- */

FIXTURE(two_vms)
{
	struct vm vm[2];
	struct kmsg kmsg;
};

FIXTURE_VARIANT(two_vms)
{
	enum change change;
	struct smmu_cmd cmd[2];
};

FIXTURE_VARIANT_ADD(two_vms, tlbi_nh_va)
{
	.cmd = {
		CONST_CMD(OP_TLBI_NH_VA | ASID_FIELD, IOVA_A),
		CONST_CMD(OP_TLBI_NH_VA | ASID_FIELD, IOVA_B),
	},
};

FIXTURE_VARIANT_ADD(two_vms, tlbi_nh_vaa)
{
	.cmd = {
		CONST_CMD(OP_TLBI_NH_VAA, IOVA_A),
		CONST_CMD(OP_TLBI_NH_VAA, IOVA_B),
	},
};

FIXTURE_VARIANT_ADD(two_vms, tlbi_nh_asid)
{
	.cmd = {
		CONST_CMD(OP_TLBI_NH_ASID | ASID_FIELD, 0),
		CONST_CMD(OP_TLBI_NH_ASID | ASID_FIELD, 0),
	},
};

FIXTURE_VARIANT_ADD(two_vms, tlbi_nh_all)
{
	.cmd = {
		CONST_CMD(OP_TLBI_NH_ALL, 0),
		CONST_CMD(OP_TLBI_NH_ALL, 0),
	},
};

FIXTURE_VARIANT_ADD(two_vms, tlbi_nsnh_all)
{
	.cmd = {
		CONST_CMD(OP_TLBI_NSNH_ALL, 0),
		CONST_CMD(OP_TLBI_NSNH_ALL, 0),
	},
};

FIXTURE_VARIANT_ADD(two_vms, cfgi_cd)
{
	.change = CHANGE_CD,
	.cmd = {
		CONST_CMD(OP_CFGI_CD | VSID_FIELD, 1),
		CONST_CMD(OP_CFGI_CD | VSID_FIELD, 1),
	},
};

FIXTURE_VARIANT_ADD(two_vms, cfgi_cd_all)
{
	.change = CHANGE_CD,
	.cmd = {
		CONST_CMD(OP_CFGI_CD_ALL | VSID_FIELD, 0),
		CONST_CMD(OP_CFGI_CD_ALL | VSID_FIELD, 0),
	},
};

FIXTURE_SETUP(two_vms)
{
	kmsg_mark(&self->kmsg);
	if (!setup_vm(_metadata, &self->vm[0], &duts[0]))
		return;
	if (!setup_vm(_metadata, &self->vm[1], &duts[1]))
		vm_close(&self->vm[0]);
}

FIXTURE_TEARDOWN(two_vms)
{
	vm_close(&self->vm[0]);
	vm_close(&self->vm[1]);
	check_kmsg(_metadata, &self->kmsg);
}

TEST_F_TIMEOUT(two_vms, isolated_dma, HANG_SECONDS)
{
	struct sights sights[2];
	struct tally tally = {};
	int i;

	if (!self->vm[0].edu || !self->vm[1].edu)
		SKIP(return, "only an edu device does DMA on demand");
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, dma_begin(&self->vm[i], variant->change));
	for (i = 0; i < 2; i++) {
		CHECK(&tally, invalidate(&self->vm[i], variant->cmd, 2),
		      answer(0, 2, 0), "VM %d", i);
		ASSERT_EQ(0, dma_look(&self->vm[0]));
		ASSERT_EQ(0, dma_look(&self->vm[1]));
	}
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, dma_end(&self->vm[i], &sights[i]));
		expect_sight(_metadata, "before the change",
			     sights[i].page[0], SEEN_OLD, SEEN_OLD);
		expect_sight(_metadata, "before the invalidation",
			     sights[i].page[1], SEEN_OLD, SEEN_OLD);
		expect_sight(_metadata, "at the end", sights[i].page[3],
			     SEEN_NEW, SEEN_NEW);
	}
	expect_sight(_metadata, "after its own invalidation",
		     sights[0].page[2], SEEN_NEW, SEEN_NEW);
	/* An emulated SMMU does as it is told, and no more. */
	expect_sight(_metadata, "after the other VM's invalidation",
		     sights[1].page[2], SEEN_OLD, SEEN_OLD);
	expect_tally(_metadata, &tally);
}

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
	if (!setup_vm(_metadata, &vm, &duts[0]))
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
		if (vm_open(vm, &duts[0])) {
			__atomic_store_n(&victim->state, BROKEN,
					 __ATOMIC_SEQ_CST);
			_exit(1);
		}
	}
	victim->arg = invalidate_arg(vm, cmds, sizeof(*cmds), ENTRY_NUM_MAX);
	__atomic_store_n(&victim->state, CALLING, __ATOMIC_SEQ_CST);
	ioctl(vm->iommufd, IOMMU_HWPT_INVALIDATE, &victim->arg);
	__atomic_store_n(&victim->state, RETURNED, __ATOMIC_SEQ_CST);
	_exit(0);
}

static void sleep_seconds(double seconds)
{
	struct timespec ts = {
		.tv_sec = seconds,
		.tv_nsec = (seconds - (time_t)seconds) * 1e9,
	};

	nanosleep(&ts, NULL);
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
		if (vm && vm->edu) {
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

	ASSERT_EQ(0, vm_open(&vm, &duts[0]));
	EXPECT_TRUE(kill_until_hit(_metadata, self, &vm));
	got = answer(0, self->victim->arg.entry_num,
		     self->victim->arg.out_driver_error_code);
	EXPECT_EQ(0, got.code);
	/* The first entry invalidates A, and the last one, B, was never read. */
	if (vm.edu)
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
	ASSERT_EQ(0, vm_open(&vm, &duts[0]))
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

/* ---- All at once ---- */

#define STRESS_THREADS 8
#define STRESS_MAX 300

struct stress {
	struct vm *vm;
	bool stop;
	uint64_t seed;
};

struct stress_thread {
	struct stress *stress;
	struct arena arena;
	pthread_t thread;
	uint64_t rng;
	unsigned long calls;
	unsigned long refused;
	unsigned long wrong;
	/* The first answer that was wrong. */
	unsigned long nth;
	unsigned int n;
	struct answer got;
	struct answer want;
};

struct stress_mapper {
	struct stress *stress;
	pthread_t thread;
	uint8_t *memory;
	uint64_t rng;
	unsigned long rounds;
	int err;
};

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

static struct smmu_cmd rng_cmd(uint64_t *rng, const struct vm *vm)
{
	uint8_t op = supported[rng_below(rng, sizeof(supported))];
	struct smmu_cmd cmd = cmd_make(op, 0);
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(fields); i++)
		if (fields[i].op == op && hw_has(vm, fields[i].cond))
			cmd = cmd_set(cmd, fields[i].hi, fields[i].lo,
				      rng_next(rng));
	if (op_has_sid(op))
		cmd = cmd_set(cmd, 63, 32, vm->vsid);
	/* Half of them are no ranges, the others are legal or nearly so. */
	if (op_has_range(op) && (rng_below(rng, 2) || !range_legal(vm, cmd))) {
		cmd = cmd_set(cmd, 16, 12, 0);
		cmd = cmd_set(cmd, 25, 20, 0);
		cmd = cmd_set(cmd, 75, 72, 0);
	}
	if (!cmd_legal(vm, cmd) || !cmd_harmless(vm, cmd))
		return cmd_elsewhere();
	return cmd;
}

static struct smmu_cmd rng_bad_cmd(uint64_t *rng, const struct vm *vm)
{
	struct smmu_cmd cmd;

	for (;;) {
		cmd = cmd_flip(rng_cmd(rng, vm), rng_below(rng, 128));
		if (!rng_below(rng, 4))
			cmd = cmd_make(rng_next(rng), rng_next(rng));
		if (!cmd_legal(vm, cmd))
			return cmd;
	}
}

/* One array with up to three things wrong. Returns the right answer. */
static struct answer stress_array(struct stress_thread *t, void **array,
				  unsigned int *stride, unsigned int *n)
{
	static const unsigned int strides[] = { 16, 16, 16, 17, 24, 64 };
	const struct vm *vm = t->stress->vm;
	struct smmu_cmd cmds[STRESS_MAX];
	uint64_t *rng = &t->rng;
	uint8_t *entries;
	struct answer want;
	unsigned int i, k;

	*n = 1 + rng_below(rng, rng_below(rng, 2) ? STRESS_MAX : 8);
	*stride = strides[rng_below(rng, ARRAY_SIZE(strides))];
	want = answer(0, *n, 0);
	for (i = 0; i < *n; i++)
		cmds[i] = rng_cmd(rng, vm);

	if (rng_below(rng, 2)) {
		*array = arena_put(&t->arena, cmds, *n, *stride, *n * *stride);
		return want;
	}
	for (i = rng_below(rng, 3); i; i--) {
		k = rng_below(rng, *n);
		cmds[k] = rng_bad_cmd(rng, vm);
		if (k < want.num)
			want = answer(EIO, k, ILL);
	}
	if (!rng_below(rng, 4)) {
		unsigned int byte = rng_below(rng, *stride);

		k = rng_below(rng, *n);
		/* Where memory ends, even the opcode is missing. */
		*array = arena_put(&t->arena, cmds, *n, *stride,
				   k * *stride + byte);
		return k <= want.num && k < *n ? answer(EFAULT, k, 0) : want;
	}
	entries = arena_put(&t->arena, cmds, *n, *stride, *n * *stride);
	*array = entries;
	if (*stride > 16 && !rng_below(rng, 4)) {
		k = rng_below(rng, *n);
		entries[k * *stride + 16 + rng_below(rng, *stride - 16)] = 1;
		/* An entry that cannot be read right is not looked at. */
		if (k <= want.num)
			want = answer(E2BIG, k, 0);
	}
	return want;
}

static void *stress_run(void *arg)
{
	struct stress_thread *t = arg;

	while (!__atomic_load_n(&t->stress->stop, __ATOMIC_RELAXED)) {
		unsigned int stride, n;
		struct answer got, want;
		void *array;

		want = stress_array(t, &array, &stride, &n);
		got = invalidate_array(t->stress->vm, array, stride, n);
		if (got.err != want.err || got.num != want.num ||
		    got.code != want.code) {
			if (!t->wrong++) {
				t->nth = t->calls;
				t->n = n;
				t->got = got;
				t->want = want;
			}
		}
		t->calls++;
		t->refused += !!want.err;
	}
	return NULL;
}

#define STRESS_IOVA 0x80000000ULL
#define STRESS_MEMORY (4UL << 20)

/* What the host does through the same command queue: stage 2 changes. */
static void *stress_map(void *arg)
{
	struct stress_mapper *m = arg;

	while (!__atomic_load_n(&m->stress->stop, __ATOMIC_RELAXED)) {
		unsigned int pages = STRESS_MEMORY / page_size();
		size_t len = (1 + rng_below(&m->rng, pages)) * page_size();
		uint64_t iova = STRESS_IOVA +
				rng_below(&m->rng, pages) * page_size();

		if (vm_ioas_map(m->stress->vm, m->memory, len, iova) ||
		    vm_ioas_unmap(m->stress->vm, iova, len)) {
			m->err = errno;
			break;
		}
		m->rounds++;
	}
	return NULL;
}

FIXTURE(stress)
{
	struct vm vm;
	struct kmsg kmsg;
};

FIXTURE_SETUP(stress)
{
	kmsg_mark(&self->kmsg);
	setup_vm(_metadata, &self->vm, &duts[0]);
}

FIXTURE_TEARDOWN(stress)
{
	vm_close(&self->vm);
	check_kmsg(_metadata, &self->kmsg);
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

/* What is complete is so under load as well. */
static void stress_dma(struct __test_metadata *_metadata, struct vm *vm,
		       struct tally *tally, unsigned long nth)
{
	struct smmu_cmd cmds[POSITIONS];
	unsigned int k = 2 + nth * 7 % (POSITIONS - 3);
	bool bad = nth % 2;
	struct sights sights;

	fill_good(cmds, k);
	cmds[k] = bad_opcode();
	ASSERT_EQ(0, dma_begin(vm, CHANGE_PAGES));
	CHECK(tally, invalidate(vm, cmds, k + bad),
	      bad ? answer(EIO, k, ILL) : answer(0, k, 0), "k = %u", k);
	ASSERT_EQ(0, dma_end(vm, &sights));
	expect_sight(_metadata, "before the change", sights.page[0], SEEN_OLD,
		     SEEN_OLD);
	/* Some other thread may have invalidated it already. */
	expect_sight(_metadata, "before the invalidation", sights.page[1],
		     SEEN_EITHER, SEEN_EITHER);
	expect_sight(_metadata, "afterwards", sights.page[2], SEEN_NEW,
		     SEEN_NEW);
}

TEST_F_TIMEOUT(stress, random, 3600)
{
	double seconds = env_number("IOMMUFD_SMMUV3_SECONDS", 5);
	struct stress_thread threads[STRESS_THREADS] = {};
	struct stress stress = { .vm = &self->vm };
	struct stress_mapper mapper = { .stress = &stress };
	struct tally tally = {};
	unsigned long calls = 0, refused = 0, wrong = 0, looks = 0;
	unsigned int i;
	double start;

	stress.seed = env_number("IOMMUFD_SMMUV3_SEED",
				 random_seed());
	TH_LOG("IOMMUFD_SMMUV3_SEED=%#llx", (unsigned long long)stress.seed);

	mapper.memory = mmap(NULL, STRESS_MEMORY, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, mapper.memory);
	for (i = 0; i < STRESS_THREADS; i++) {
		arena_init(_metadata, &threads[i].arena, STRESS_MAX * 64);
		threads[i].stress = &stress;
	}
	for (i = 0; i < STRESS_THREADS + 1; i++) {
		/* Neighbours must not begin alike, and none with 0. */
		uint64_t rng = (stress.seed + i) * 0x9e3779b97f4a7c15ULL | 1;

		if (i < STRESS_THREADS)
			threads[i].rng = rng;
		else
			mapper.rng = rng;
	}
	for (i = 0; i < STRESS_THREADS; i++)
		ASSERT_EQ(0, pthread_create(&threads[i].thread, NULL,
					    stress_run, &threads[i]));
	ASSERT_EQ(0, pthread_create(&mapper.thread, NULL, stress_map,
				    &mapper));
	start = now_seconds();
	while (now_seconds() - start < seconds) {
		if (self->vm.edu)
			stress_dma(_metadata, &self->vm, &tally, looks++);
		else
			sleep_seconds(0.1);
	}
	__atomic_store_n(&stress.stop, true, __ATOMIC_RELAXED);

	for (i = 0; i < STRESS_THREADS; i++) {
		struct stress_thread *t = &threads[i];

		pthread_join(t->thread, NULL);
		calls += t->calls;
		refused += t->refused;
		wrong += t->wrong;
		if (t->wrong) {
			TH_LOG("thread %u: %lu of %lu answers are wrong", i,
			       t->wrong, t->calls);
			TH_LOG("call %lu, n = %u: got (%s, %u, code %u), want (%s, %u, code %u)",
			       t->nth, t->n, err_name(t->got.err), t->got.num,
			       t->got.code, err_name(t->want.err), t->want.num,
			       t->want.code);
		}
		/* None must starve. */
		EXPECT_NE(0, t->calls);
	}
	pthread_join(mapper.thread, NULL);
	TH_LOG("%lu calls, %lu of them bad; %lu rounds of map and unmap, %lu of DMA",
	       calls, refused, mapper.rounds, looks);
	EXPECT_EQ(0, wrong);
	if (self->vm.edu)
		expect_tally(_metadata, &tally);
	EXPECT_EQ(0, mapper.err);
	EXPECT_NE(0, mapper.rounds);
	EXPECT_NE(0, refused);
	EXPECT_LT(refused, calls);
	expect_usable(_metadata, &self->vm);
}

/* ---- Errors that the SMMU itself raises for a VM's commands ---- */

FIXTURE(injected)
{
	struct vm vm;
	struct kmsg kmsg;
	struct cmdq_stats before;
	/* How many errors there must have been so far. */
	uint64_t errors;
};

/* What the driver has counted meets expectations, and nobody gave up. */
static void expect_errors(struct __test_metadata *_metadata,
			  const struct cmdq_stats *before, uint64_t errors)
{
	struct cmdq_stats now;
	int tries = 1000;

	/* Who has serviced an error counts it a moment later. */
	do {
		ASSERT_TRUE(cmdq_stats_read(&faults, &now));
		if (now.ill - before->ill >= errors)
			break;
		sleep_seconds(0.001);
	} while (--tries);
	EXPECT_EQ(errors, now.ill - before->ill);
	EXPECT_EQ(before->unexpected, now.unexpected);
}

static bool setup_faults(struct __test_metadata *_metadata, struct kmsg *kmsg,
			 struct cmdq_stats *before)
{
	if (*faults.unusable)
		SKIP(return false, "%s", faults.unusable);
	kmsg_mark(kmsg);
	kmsg->injecting = true;
	ASSERT_TRUE(faults_begin(&faults));
	ASSERT_TRUE(cmdq_stats_read(&faults, before));
	return true;
}

FIXTURE_SETUP(injected)
{
	if (setup_vm(_metadata, &self->vm, &duts[0]))
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

	if (!self->vm.edu)
		SKIP(return, "only an edu device does DMA on demand");
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

	if (!self->vm.edu)
		SKIP(return, "only an edu device does DMA on demand");
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

/* Whether faults are for this process, if not for all. */
static bool make_it_fail(bool fail)
{
	return write_text("/proc/self/make-it-fail", fail ? "1" : "0");
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
	if (!setup_vm(_metadata, &self->vm, &duts[0]) ||
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
 * Who waits for the queue with interrupts disabled must not wait for one. What
 * makes that go wrong makes it go wrong each time, for as long as a time-out
 * takes. A few may be slow because the machine is.
 */
TEST_F_TIMEOUT(gerror, no_stall, HANG_SECONDS)
{
	const unsigned int calls = 64;
	unsigned int slow = 0, i;
	struct smmu_cmd cmds[100];
	const unsigned int n = ARRAY_SIZE(cmds);
	struct tally tally = {};
	struct cmdq_stats now;
	double longest = 0;

	fill_good(cmds, n);
	for (i = 0; i < calls; i++) {
		unsigned int k = i * 37 % n;
		double seconds;

		if (variant->routed && !variant->pinned)
			ASSERT_TRUE(pin_to(nth_cpu(i)));
		ASSERT_TRUE(faults_at(&faults, k, 1));
		seconds = now_seconds();
		CHECK(&tally, invalidate(&self->vm, cmds, n),
		      answer(EIO, k, ILL), "call %u, k = %u", i, k);
		seconds = now_seconds() - seconds;
		self->errors++;
		slow += seconds >= 0.1;
		if (longest < seconds)
			longest = seconds;
	}
	expect_tally(_metadata, &tally);
	expect_errors(_metadata, &self->before, self->errors);
	ASSERT_TRUE(cmdq_stats_read(&faults, &now));
	now.serviced_inline -= self->before.serviced_inline;
	TH_LOG("at most %.6f s; %llu of %llu errors serviced by the submitter",
	       longest, (unsigned long long)now.serviced_inline,
	       (unsigned long long)self->errors);
	EXPECT_LE(slow, calls / 16);
	/* The interrupt has to wait, and so nobody else can have done it. */
	if (variant->pinned && variant->nth == 0)
		EXPECT_EQ(self->errors, now.serviced_inline);
	expect_usable(_metadata, &self->vm);
}

/* ---- A VM with errors, and others who share the queue with it ---- */

#define NEIGHBOURS 3

/* Shared by a process that makes calls and one that watches. */
struct neighbour {
	struct vm vm;
	/* Where it has to run, or -1. */
	int cpu;
	enum {
		INNOCENT,
		/* An error is injected into some of its arrays. */
		GUILTY,
		/* All of an array fails, or nothing. */
		BY_TURNS,
	} role;
	unsigned long calls;
	unsigned long errors;
	unsigned long wrong;
	/* The last answer that was wrong. */
	unsigned int n;
	struct answer got;
	struct answer want;
	double longest;
	bool broken;
};

struct neighbourhood {
	bool stop;
	struct neighbour neighbours[NEIGHBOURS];
};

FIXTURE(neighbours)
{
	struct vm vm[2];
	/* Of another VM, if its device is behind the same SMMU. */
	bool two_devices;
	struct kmsg kmsg;
	struct cmdq_stats before;
	struct neighbourhood *hood;
	struct stress stress[2];
	struct stress_mapper mapper[2];
	uint64_t seed;
};

FIXTURE_VARIANT(neighbours)
{
	enum { FREELY, APART, TOGETHER } place;
	/* Each of them is the guilty one now and then, several at a time. */
	bool by_turns;
	/* The interrupt of errors goes to the CPU of the nth neighbour. */
	bool routed;
	unsigned int nth;
};

FIXTURE_VARIANT_ADD(neighbours, free) {};

FIXTURE_VARIANT_ADD(neighbours, apart) { .place = APART, };

FIXTURE_VARIANT_ADD(neighbours, together) { .place = TOGETHER, };

FIXTURE_VARIANT_ADD(neighbours, by_turns) { .by_turns = true, };

FIXTURE_VARIANT_ADD(neighbours, by_turns_apart)
{
	.by_turns = true,
	.place = APART,
};

FIXTURE_VARIANT_ADD(neighbours, interrupt_to_guilty)
{
	.place = APART,
	.routed = true,
};

FIXTURE_VARIANT_ADD(neighbours, interrupt_to_innocent)
{
	.place = APART,
	.routed = true,
	.nth = 1,
};

/* A vIOMMU needs no device of its own, unless it is for CFGI and ATC_INV. */
static void setup_second_viommu(struct __test_metadata *_metadata,
				FIXTURE_DATA(neighbours) * self)
{
	self->vm[1] = self->vm[0];
	ASSERT_EQ(0, vm_alloc_s2(&self->vm[0], &self->vm[1].s2_id));
	ASSERT_EQ(0, vm_alloc_viommu(&self->vm[0], self->vm[1].s2_id,
				     &self->vm[1].viommu_id));
}

FIXTURE_SETUP(neighbours)
{
	int i;

	if (variant->routed && !gerror.n)
		SKIP(return, "no interrupt arm-smmu-v3-gerror whose CPUs can be chosen");
	if (!setup_vm(_metadata, &self->vm[0], &duts[0]) ||
	    !setup_faults(_metadata, &self->kmsg, &self->before))
		return;
	self->two_devices = !*duts[1].unusable;
	if (self->two_devices) {
		ASSERT_EQ(0, vm_open(&self->vm[1], &duts[1]))
		{
			TH_LOG("%s", self->vm[1].error);
		}
		/* To see the host's own domains, too. */
		ASSERT_EQ(0, vm_attach(&self->vm[1], self->vm[1].s2_id));
	} else {
		TH_LOG("the same device for both: %s", duts[1].unusable);
		setup_second_viommu(_metadata, self);
	}

	self->hood = mmap(NULL, sizeof(*self->hood), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->hood);
	self->seed = env_number("IOMMUFD_SMMUV3_SEED", random_seed());
	TH_LOG("IOMMUFD_SMMUV3_SEED=%#llx", (unsigned long long)self->seed);
	for (i = 0; i < NEIGHBOURS; i++) {
		struct neighbour *one = &self->hood->neighbours[i];

		/* One in the same VM as the guilty one, one in the other. */
		one->vm = self->vm[i == 1];
		one->role = i ? INNOCENT : GUILTY;
		if (variant->by_turns)
			one->role = BY_TURNS;
		one->cpu = -1;
		if (variant->place != FREELY)
			one->cpu = nth_cpu(variant->place == APART ? i : 0);
	}
	for (i = 0; i < 2; i++) {
		self->stress[i].vm = &self->vm[i];
		self->mapper[i].stress = &self->stress[i];
		self->mapper[i].rng = (self->seed + i) | 1;
		self->mapper[i].memory = mmap(NULL, STRESS_MEMORY,
					      PROT_READ | PROT_WRITE,
					      MAP_SHARED | MAP_ANONYMOUS, -1,
					      0);
		ASSERT_NE(MAP_FAILED, self->mapper[i].memory);
	}
	ASSERT_TRUE(faults_write(&faults, FAULT_TASK_FILTER, "Y"));
	if (variant->routed)
		ASSERT_TRUE(gerror_route(&gerror, nth_cpu(variant->nth)));
}

FIXTURE_TEARDOWN(neighbours)
{
	gerror_restore(&gerror);
	faults_restore(&faults);
	if (self->two_devices)
		vm_close(&self->vm[1]);
	vm_close(&self->vm[0]);
	check_kmsg(_metadata, &self->kmsg);
}

static void neighbour_call(struct neighbour *one, uint64_t *rng,
			   const struct smmu_cmd *cmds)
{
	/* The queue stops at each error, so that too many are too slow. */
	unsigned int most = one->role == BY_TURNS ? 8 : POSITIONS;
	unsigned int n = 1 + rng_below(rng, most);
	struct answer want = answer(0, n, 0), got;
	double start;

	if (one->role == GUILTY && rng_below(rng, 4)) {
		want = answer(EIO, rng_below(rng, n), ILL);
		if (!faults_at(&faults, want.num, 1))
			one->broken = true;
	}
	if (one->role == BY_TURNS) {
		bool guilty = rng_below(rng, 2);

		if (guilty)
			want = answer(EIO, 0, ILL);
		if (!make_it_fail(guilty))
			one->broken = true;
	}
	start = now_seconds();
	got = invalidate(&one->vm, cmds, n);
	start = now_seconds() - start;
	if (one->longest < start)
		one->longest = start;
	if (got.err != want.err || got.num != want.num ||
	    got.code != want.code) {
		one->wrong++;
		one->n = n;
		one->got = got;
		one->want = want;
	}
	one->errors += !!want.err;
	one->calls++;
}

static void neighbour_run(struct neighbourhood *hood, struct neighbour *one,
			  uint64_t rng)
{
	struct smmu_cmd cmds[POSITIONS];

	/* Whatever becomes of the test, nobody stays behind. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) ||
	    (one->cpu >= 0 && !pin_to(one->cpu)) ||
	    (one->role == GUILTY && !make_it_fail(true)))
		one->broken = true;
	fill_good(cmds, POSITIONS);
	while (!one->broken &&
	       !__atomic_load_n(&hood->stop, __ATOMIC_RELAXED))
		neighbour_call(one, &rng, cmds);
}

static void expect_neighbour(struct __test_metadata *_metadata,
			     const struct neighbour *one, unsigned int i)
{
	TH_LOG("process %u, CPU %d: %lu calls, %lu errors, %lu wrong answers, at most %.6f s",
	       i, one->cpu, one->calls, one->errors, one->wrong, one->longest);
	if (one->wrong)
		TH_LOG("n = %u: got (%s, %u, code %u), want (%s, %u, code %u)",
		       one->n, err_name(one->got.err), one->got.num,
		       one->got.code, err_name(one->want.err), one->want.num,
		       one->want.code);
	EXPECT_FALSE(one->broken);
	EXPECT_NE(0, one->calls);
	EXPECT_EQ(0, one->wrong);
	EXPECT_EQ(one->role != INNOCENT, !!one->errors);
}

/* What the host does makes it use the queue, or else it is no neighbour. */
static void expect_host_traffic(struct __test_metadata *_metadata,
				struct vm *vm, void *memory)
{
	struct cmdq_stats before, after;

	ASSERT_TRUE(cmdq_stats_read(&faults, &before));
	ASSERT_EQ(0, vm_ioas_map(vm, memory, page_size(), STRESS_IOVA));
	ASSERT_EQ(0, vm_ioas_unmap(vm, STRESS_IOVA, page_size()));
	ASSERT_TRUE(cmdq_stats_read(&faults, &after));
	EXPECT_LT(before.commands, after.commands);
}

TEST_F_TIMEOUT(neighbours, undisturbed, HANG_SECONDS)
{
	const unsigned int mappers = self->two_devices ? 2 : 1;
	struct neighbourhood *hood = self->hood;
	const long many = INT_MAX;
	pid_t pids[NEIGHBOURS];
	uint64_t errors = 0;
	unsigned int i;
	int status;

	for (i = 0; i < mappers; i++)
		expect_host_traffic(_metadata, &self->vm[i],
				    self->mapper[i].memory);
	if (variant->by_turns)
		ASSERT_TRUE(faults_at(&faults, 0, many));
	for (i = 0; i < NEIGHBOURS; i++) {
		/* Neighbours must not begin alike, and none with 0. */
		uint64_t rng = (self->seed + i) * 0x9e3779b97f4a7c15ULL | 1;

		pids[i] = fork();
		ASSERT_LE(0, pids[i]);
		if (!pids[i]) {
			neighbour_run(hood, &hood->neighbours[i], rng);
			_exit(0);
		}
	}
	/* The mappers stay where this thread is now. */
	if (variant->place != FREELY)
		ASSERT_TRUE(pin_to(nth_cpu(variant->place == APART ? NEIGHBOURS :
								     0)));
	for (i = 0; i < mappers; i++)
		ASSERT_EQ(0, pthread_create(&self->mapper[i].thread, NULL,
					    stress_map, &self->mapper[i]));
	sleep_seconds(1.5);
	__atomic_store_n(&hood->stop, true, __ATOMIC_RELAXED);
	for (i = 0; i < mappers; i++)
		__atomic_store_n(&self->stress[i].stop, true, __ATOMIC_RELAXED);

	for (i = 0; i < NEIGHBOURS; i++) {
		ASSERT_EQ(pids[i], waitpid(pids[i], &status, 0));
		EXPECT_EQ(0, status);
		expect_neighbour(_metadata, &hood->neighbours[i], i);
		errors += hood->neighbours[i].errors;
	}
	for (i = 0; i < mappers; i++) {
		pthread_join(self->mapper[i].thread, NULL);
		TH_LOG("host: %lu rounds of map and unmap",
		       self->mapper[i].rounds);
		EXPECT_EQ(0, self->mapper[i].err);
		EXPECT_NE(0, self->mapper[i].rounds);
	}
	if (variant->by_turns)
		errors = many - faults_left(&faults);
	TH_LOG("%llu errors", (unsigned long long)errors);
	expect_errors(_metadata, &self->before, errors);
	expect_usable(_metadata, &self->vm[0]);
}

static void release_all(void)
{
	gerror_restore(&gerror);
	faults_release(&faults);
	dut_release(&duts[0]);
	dut_release(&duts[1]);
}

int main(int argc, char **argv)
{
	dut_find(&duts[0], "IOMMUFD_SMMUV3_DEVICE", NULL);
	dut_find(&duts[1], "IOMMUFD_SMMUV3_DEVICE2", &duts[0]);
	faults_find(&faults, &duts[0]);
	gerror_find(&gerror);
	/* Tests run in children of ours, which end without this. */
	atexit(release_all);
	return test_harness_run(argc, argv);
}
