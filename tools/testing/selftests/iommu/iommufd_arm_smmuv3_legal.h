/* SPDX-License-Identifier: GPL-2.0-only */
/* Which commands are legal, by the architecture, and legal ones by chance. */
#ifndef __SELFTEST_IOMMUFD_ARM_SMMUV3_LEGAL_H
#define __SELFTEST_IOMMUFD_ARM_SMMUV3_LEGAL_H

#include "iommufd_arm_smmuv3.h"
#include "iommufd_arm_smmuv3_host.h"

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
	       vm->atc || vm_is_edu(vm);
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

/* ---- Commands by chance ---- */

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

#endif /* __SELFTEST_IOMMUFD_ARM_SMMUV3_LEGAL_H */
