/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ioctl(IOMMU_HWPT_INVALIDATE) on the vIOMMU of a real SMMUv3, by way of a vfio
 * device: each answer is held against what the uAPI promises, and where there
 * is a device that does DMA on demand, so is what the caches of the SMMU hold.
 *
 * The device is given as in the self-tests of vfio, by its PCI address at the
 * end of the command line or in VFIO_SELFTESTS_BDF, and is bound to vfio-pci
 * before (see ../vfio/scripts/setup.sh). Tests of two VMs take a second one
 * behind the same SMMU, on the command line. What DMA sees is shown by devices
 * that have a driver in ../vfio/lib, such as QEMU's edu: "-device
 * edu,dma_mask=0xffffffffffff", once or twice, on a machine with
 * "iommu=smmuv3" and "-global arm-smmuv3.stage=nested".
 */
#ifndef __SELFTEST_IOMMUFD_ARM_SMMUV3_TEST_H
#define __SELFTEST_IOMMUFD_ARM_SMMUV3_TEST_H

#include "kselftest_harness.h"

#include "iommufd_arm_smmuv3.h"
#include "iommufd_arm_smmuv3_host.h"

/* Nothing takes that long, on the slowest of machines, unless it hangs. */
#define HANG_SECONDS 120

/* The sizes at which a kernel might cut an array into pieces, and 1. */
static const unsigned int borders[] = { 1, 62, 63, 64, 65, 126, 127, 199 };

#define POSITIONS 200

#define NO_DMA "libvfio has no driver that makes this device do DMA"

/* The addresses of the devices. The second one may be missing: NULL. */
static const char *duts[2];

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
		     const char *bdf)
{
	/* A test that was killed cannot have cleaned up. */
	faults_restore(&faults);
	gerror_restore(&gerror);
	if (!vm_open(vm, bdf))
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

	if (vm_has_dma(vm))
		ASSERT_EQ(0, dma_begin(vm, CHANGE_PAGES));
	CHECK(&tally, invalidate(vm, cmds, 2), answer(0, 2, 0), "afterwards");
	expect_tally(_metadata, &tally);
	if (vm_has_dma(vm))
		expect_dma(_metadata, vm, "afterwards", SEEN_NEW, SEEN_NEW);
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

/* ---- Errors that the SMMU raises ---- */

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

/* ---- From beginning to end ---- */

static pid_t main_pid;

static void release_all(void)
{
	/* libvfio ends a test that runs in a child of ours with exit(). */
	if (getpid() != main_pid)
		return;
	gerror_restore(&gerror);
	faults_release(&faults);
}

static int test_main(int argc, char **argv)
{
	char **bdfs;
	int n;

	bdfs = vfio_selftests_get_bdfs(&argc, argv, &n);
	duts[0] = bdfs[0];
	if (n > 1 && same_iommu(bdfs[0], bdfs[1]))
		duts[1] = bdfs[1];
	faults_find(&faults, duts[0]);
	gerror_find(&gerror);
	main_pid = getpid();
	atexit(release_all);
	return test_harness_run(argc, argv);
}

#endif /* __SELFTEST_IOMMUFD_ARM_SMMUV3_TEST_H */
