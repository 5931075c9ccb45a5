// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which commands are legal: each opcode, each bit, each value of a field; and what
 * the legal ones do to the caches of the SMMU.
 */
#include "iommufd_arm_smmuv3_test.h"
#include "iommufd_arm_smmuv3_legal.h"

/* ---- Which commands are legal ---- */

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
	setup_vm(_metadata, &self->vm, duts[0]);
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
	setup_vm(_metadata, &self->vm, duts[0]);
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
	setup_vm(_metadata, &self->vm, duts[0]);
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
	setup_vm(_metadata, &self->vm, duts[0]);
}

FIXTURE_TEARDOWN(effect)
{
	vm_close(&self->vm);
	check_kmsg(_metadata, &self->kmsg);
}

TEST_F_TIMEOUT(effect, dma, HANG_SECONDS)
{
	struct tally tally = {};

	if (!vm_has_dma(&self->vm))
		SKIP(return, NO_DMA);
	if (!hw_has(&self->vm, variant->cond))
		SKIP(return, "the SMMU does not have the command");
	ASSERT_EQ(0, dma_begin(&self->vm, variant->change));
	CHECK(&tally, invalidate(&self->vm, &variant->cmd, 1),
	      answer(0, 1, 0), "the command");
	expect_tally(_metadata, &tally);
	expect_dma(_metadata, &self->vm, "afterwards", SEEN_NEW, variant->b);
}

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
