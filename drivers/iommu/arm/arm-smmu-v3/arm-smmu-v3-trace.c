// SPDX-License-Identifier: GPL-2.0
/*
 * The tracepoints of the command queue, which port.rs calls.
 */

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/arm_smmu_v3.h>
