// SPDX-License-Identifier: GPL-2.0
/*
 * The C code that the sanitiser replaces, with as much around it as it needs.
 * What is compared is cut out of the kernel source by the build script.
 */
#include <errno.h>
#include <stdbool.h>
#include <linux/bitfield.h>
#include <linux/bits.h>
#include <linux/types.h>

#define __aligned_le64 __le64 __attribute__((aligned(8)))
#ifndef fallthrough
#define fallthrough __attribute__((__fallthrough__))
#endif

/* See struct Question and struct Answer in lib.rs. */
struct question {
	u64 words[2];
	u32 asid_bits;
	u32 ssid_bits;
	u32 sid;
	u16 vmid;
	u8 range_inv;
	u8 ds;
	u8 ats;
	u8 found;
};

struct answer {
	u64 words[2];
	u32 vsid;
	u32 lookups;
	u8 verdict;
	u8 has_atc_inv;
};

struct arm_smmu_device {
	u32 features;
	unsigned int asid_bits;
	unsigned int ssid_bits;
};

struct arm_vsmmu {
	struct arm_smmu_device *smmu;
	u16 vmid;
	/* Instead of a list of devices. */
	const struct question *question;
	struct answer *answer;
};

static int arm_vsmmu_vsid_to_sid(struct arm_vsmmu *vsmmu, u32 vsid, u32 *sid)
{
	vsmmu->answer->vsid = vsid;
	vsmmu->answer->lookups++;
	if (!vsmmu->question->found)
		return -EIO;
	*sid = vsmmu->question->sid;
	return 0;
}

#include "extracted.h"

void verify_c(const struct question *question, struct answer *answer)
{
	struct arm_smmu_device smmu = {
		.features = (question->range_inv ? ARM_SMMU_FEAT_RANGE_INV : 0) |
			    (question->ds ? ARM_SMMU_FEAT_DS : 0) |
			    (question->ats ? ARM_SMMU_FEAT_ATS : 0),
		.asid_bits = question->asid_bits,
		.ssid_bits = question->ssid_bits,
	};
	struct arm_vsmmu vsmmu = {
		.smmu = &smmu,
		.vmid = question->vmid,
		.question = question,
		.answer = answer,
	};
	struct arm_vsmmu_invalidation_cmd cmd = {
		.ucmd.cmd = { question->words[0], question->words[1] },
	};

	*answer = (struct answer){};
	answer->verdict = arm_vsmmu_convert_user_cmd(&vsmmu, &cmd) == 0;
	answer->words[0] = cmd.cmd.data[0];
	answer->words[1] = cmd.cmd.data[1];
	answer->has_atc_inv = answer->verdict &&
			      (cmd.cmd.data[0] & CMDQ_0_OP) == CMDQ_OP_ATC_INV;
}
