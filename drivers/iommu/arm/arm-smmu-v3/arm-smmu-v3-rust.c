// SPDX-License-Identifier: GPL-2.0
/*
 * What the command queue in Rust needs in C: its tracepoints, a work that
 * acknowledges an error later, and one that blocks ATS.
 */

#include <linux/device.h>
#include <linux/workqueue.h>

#include "arm-smmu-v3.h"

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/arm_smmu_v3.h>

/* What arm_smmu_rust_cmdq_handle_error() returns */
enum {
	NO_ERROR,
	ACKNOWLEDGED,
	RETRY_LATER,
};

/**
 * arm_smmu_rust_cmdq_error() - handle the active error of a command queue
 * @cmdq: the queue
 *
 * If the error is not acknowledged at once, since the same slot had one just
 * before, this is called again after a jiffy.
 *
 * Context: Any, interrupt handlers included, but for NMIs.
 * Return: Whether there was an error since the last call.
 */
bool arm_smmu_rust_cmdq_error(struct arm_smmu_cmdq *cmdq)
{
	int ret = arm_smmu_rust_cmdq_handle_error(cmdq);

	if (ret == RETRY_LATER)
		schedule_delayed_work(&cmdq->rust_retry, 1);
	return ret != NO_ERROR;
}

static void arm_smmu_rust_cmdq_retry(struct work_struct *work)
{
	arm_smmu_rust_cmdq_error(container_of(to_delayed_work(work),
					      struct arm_smmu_cmdq, rust_retry));
}

static void arm_smmu_rust_cmdq_block_ats_work(struct work_struct *work)
{
	struct arm_smmu_cmdq *cmdq = container_of(work, struct arm_smmu_cmdq,
						  rust_block_ats);

	arm_smmu_block_ats(cmdq->smmu, cmdq);
}

/**
 * arm_smmu_rust_cmdq_block_ats() - have ATS of devices blocked
 * @cmdq: the queue that knows which have not answered
 *
 * Context: Any but an NMI.
 */
void arm_smmu_rust_cmdq_block_ats(struct arm_smmu_cmdq *cmdq)
{
	schedule_work(&cmdq->rust_block_ats);
}

/**
 * arm_smmu_rust_cmdq_disable_works() - end what works in the background
 * @cmdq: the queue, which is about to go away
 */
void arm_smmu_rust_cmdq_disable_works(struct arm_smmu_cmdq *cmdq)
{
	disable_delayed_work_sync(&cmdq->rust_retry);
	disable_work_sync(&cmdq->rust_block_ats);
	list_del(&cmdq->rust_queues);
}

/**
 * arm_smmu_rust_cmdq_init() - make a command queue in Rust
 * @smmu: the SMMU
 * @cmdq: its queue, or one of an extension, whose memory and registers are set
 *
 * Return: 0 or a negative errno.
 */
int arm_smmu_rust_cmdq_init(struct arm_smmu_device *smmu,
			    struct arm_smmu_cmdq *cmdq)
{
	int ret;

	cmdq->smmu = smmu;
	INIT_LIST_HEAD(&cmdq->rust_queues);
	INIT_DELAYED_WORK(&cmdq->rust_retry, arm_smmu_rust_cmdq_retry);
	INIT_WORK(&cmdq->rust_block_ats, arm_smmu_rust_cmdq_block_ats_work);
	ret = arm_smmu_rust_cmdq_alloc(smmu, cmdq);
	if (!ret && cmdq != &smmu->cmdq)
		list_add(&cmdq->rust_queues, &smmu->cmdq.rust_queues);
	return ret;
}

static void forget_streams(struct arm_smmu_cmdq *cmdq,
			   const struct arm_smmu_master *master)
{
	for (int i = 0; i < master->num_streams; i++)
		arm_smmu_rust_cmdq_forget_stream(cmdq, master->streams[i].id);
}

/**
 * arm_smmu_rust_cmdq_forget() - forget that the device has not answered
 * @master: the device, which is attached or reset
 */
void arm_smmu_rust_cmdq_forget(struct arm_smmu_master *master)
{
	struct arm_smmu_cmdq *main = &master->smmu->cmdq, *cmdq;

	/* The host's ATC invalidations go to the queues of an extension too */
	forget_streams(main, master);
	list_for_each_entry(cmdq, &main->rust_queues, rust_queues)
		forget_streams(cmdq, master);
}

/**
 * arm_smmu_rust_ats_is_enabled() - whether a device may use ATS at present
 * @master: the device
 *
 * Return: What was so a moment ago, unless the caller holds the lock for
 * attaching. ATS counts as enabled as soon as the STE allows it.
 */
bool arm_smmu_rust_ats_is_enabled(const struct arm_smmu_master *master)
{
	/* Either answer is right while an attach changes it */
	return data_race(master->ats_enabled || master->ste_ats_enabled);
}
