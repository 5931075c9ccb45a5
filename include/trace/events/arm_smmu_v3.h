/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Tracepoints of the command queue of Arm SMMUv3. They are used by
 * drivers/iommu/arm/arm-smmu-v3/smmu_hw.rs.
 */

#undef TRACE_SYSTEM
#define TRACE_SYSTEM arm_smmu_v3

#if !defined(_TRACE_ARM_SMMU_V3_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_ARM_SMMU_V3_H

#include <linux/device.h>
#include <linux/tracepoint.h>

/*
 * A batch of commands was made visible to the SMMU, by a write of PROD. @index is
 * the slot of the first one. @cmds does not count the CMD_SYNC, which is the last
 * command of the batch if @sync is true.
 */
TRACE_EVENT(arm_smmu_cmdq_batch,
	TP_PROTO(struct device *dev, u32 index, u32 cmds, bool sync),
	TP_ARGS(dev, index, cmds, sync),
	TP_STRUCT__entry(
		__string(dev, dev_name(dev))
		__field(u32, index)
		__field(u32, cmds)
		__field(bool, sync)
	),
	TP_fast_assign(
		__assign_str(dev);
		__entry->index = index;
		__entry->cmds = cmds;
		__entry->sync = sync;
	),
	TP_printk("%s: index=0x%x cmds=%u sync=%d", __get_str(dev),
		  __entry->index, __entry->cmds, __entry->sync)
);

/*
 * The SMMU raised an error of the command queue, and it was handled. @cons is the
 * register at that time, which has the error code and the index. @word0 and @word1
 * are the command there, or 0 if it could not be fetched. @inline_ is true if a CPU
 * that was waiting for the queue handled the error, and false if the interrupt
 * handler did.
 */
TRACE_EVENT(arm_smmu_cmdq_error,
	TP_PROTO(struct device *dev, u32 cons, u64 word0, u64 word1,
		 u32 action, bool inline_),
	TP_ARGS(dev, cons, word0, word1, action, inline_),
	TP_STRUCT__entry(
		__string(dev, dev_name(dev))
		__field(u32, cons)
		__field(u64, word0)
		__field(u64, word1)
		__field(u32, action)
		__field(bool, inline_)
	),
	TP_fast_assign(
		__assign_str(dev);
		__entry->cons = cons;
		__entry->word0 = word0;
		__entry->word1 = word1;
		__entry->action = action;
		__entry->inline_ = inline_;
	),
	TP_printk("%s: cons=0x%08x error=%s cmd=0x%016llx:0x%016llx action=%s by=%s",
		  __get_str(dev), __entry->cons,
		  __print_symbolic((__entry->cons >> 24) & 0x7f,
				   { 0, "none" }, { 1, "ill" }, { 2, "abt" },
				   { 3, "atc_inv_sync" }),
		  __entry->word0, __entry->word1,
		  __print_symbolic(__entry->action,
				   { 0, "retry" }, { 1, "replace" }),
		  __entry->inline_ ? "poller" : "interrupt")
);

/*
 * An ATC invalidation was issued again, alone, because an earlier CMD_SYNC had
 * reported a time-out. @error is 0 if it completed, else the CERROR code.
 */
TRACE_EVENT(arm_smmu_cmdq_replay,
	TP_PROTO(struct device *dev, u64 word0, u64 word1, u32 error),
	TP_ARGS(dev, word0, word1, error),
	TP_STRUCT__entry(
		__string(dev, dev_name(dev))
		__field(u64, word0)
		__field(u64, word1)
		__field(u32, error)
	),
	TP_fast_assign(
		__assign_str(dev);
		__entry->word0 = word0;
		__entry->word1 = word1;
		__entry->error = error;
	),
	TP_printk("%s: cmd=0x%016llx:0x%016llx error=%u", __get_str(dev),
		  __entry->word0, __entry->word1, __entry->error)
);

/* Guests' CMD_ATC_INVs for a stream are refused, as its device has not answered */
TRACE_EVENT(arm_smmu_cmdq_backoff,
	TP_PROTO(struct device *dev, u32 sid, u32 msecs),
	TP_ARGS(dev, sid, msecs),
	TP_STRUCT__entry(
		__string(dev, dev_name(dev))
		__field(u32, sid)
		__field(u32, msecs)
	),
	TP_fast_assign(
		__assign_str(dev);
		__entry->sid = sid;
		__entry->msecs = msecs;
	),
	TP_printk("%s: sid=0x%x msecs=%u", __get_str(dev), __entry->sid,
		  __entry->msecs)
);

#endif /* _TRACE_ARM_SMMU_V3_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
