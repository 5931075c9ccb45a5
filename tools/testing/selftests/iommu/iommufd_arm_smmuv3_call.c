// SPDX-License-Identifier: GPL-2.0-only
/*
 * The argument of ioctl(IOMMU_HWPT_INVALIDATE), the distance between entries,
 * and what a call answers.
 */
#include "iommufd_arm_smmuv3_test.h"

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
	if (!setup_vm(_metadata, &self->vm, duts[0]))
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
	       duts[0], hw->idr[0], hw->idr[1], hw->idr[3], hw->idr[5],
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

	if (!vm_has_dma(&self->vm))
		SKIP(return, NO_DMA);
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

	if (!vm_has_dma(&self->vm))
		SKIP(return, NO_DMA);
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
	arg.hwpt_id = self->vm.iommu->ioas_id;
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
	EXPECT_EQ(-1, ioctl(self->vm.iommu->iommufd, IOMMU_HWPT_INVALIDATE, arg));
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

	if (!vm_has_dma(&self->vm))
		SKIP(return, NO_DMA);
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
	if (!setup_vm(_metadata, &self->vm, duts[0]))
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

	if (!vm_has_dma(&self->vm))
		SKIP(return, NO_DMA);
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
	if (!setup_vm(_metadata, &self->vm, duts[0]))
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

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
