// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests of Tegra241's VCMDQs with the command queue in Rust.
 *
 * Part of tegra241-cmdqv.c, whose code drives a CMDQV made of software here: its
 * registers and those of the SMMU are memory, and a thread on another CPU does
 * what the hardware does.
 */

#include <kunit/device.h>
#include <kunit/test.h>
#include <linux/kthread.h>
#include <linux/vmalloc.h>

#define NUM_LVCMDQS	2
/* Up to the end of the pages of VINTF0 */
#define CMDQV_SIZE	(TEGRA241_VINTF_PAGE_BASE + SZ_128K)
/* Both pages of an SMMU */
#define SMMU_SIZE	SZ_128K
/* A stream whose device answers no CMD_ATC_INV */
#define SID_DEAD	7
/* Reserved */
#define OP_ILLEGAL	0x7e

/* A command queue as the hardware has it, and what that has done */
struct soft_cmdq {
	struct arm_smmu_cmdq *cmdq;
	bool unanswered;
	unsigned int cmds;
	unsigned int atc_invs;
	unsigned int syncs;
	unsigned int msi_syncs;
	unsigned int errors;
};

struct soft_cmdqv {
	struct tegra241_cmdqv *cmdqv;
	struct device *dev;
	struct task_struct *thread;
	/* HYP_OWN can be set, which it cannot in a guest */
	bool is_host;
	/* There is an interrupt for errors */
	bool has_irq;
	unsigned int irqs;
	/* The SMMU's own queue, and those of VINTF0 */
	struct soft_cmdq queues[1 + NUM_LVCMDQS];
};

/* Stops a queue at CONS */
static void soft_cmdq_error(struct soft_cmdq *soft, u32 cons, u32 err)
{
	struct arm_smmu_cmdq *cmdq = soft->cmdq;

	WRITE_ONCE(soft->errors, soft->errors + 1);
	writel(cons | FIELD_PREP(CMDQ_CONS_ERR, err), cmdq->q.cons_reg);
	writel(readl(cmdq->gerror_reg) ^ GERROR_CMDQ_ERR, cmdq->gerror_reg);
}

/* Executes what is in a queue. Returns whether it has stopped at an error. */
static bool soft_cmdq_run(struct soft_cmdq *soft)
{
	struct arm_smmu_cmdq *cmdq = soft->cmdq;
	u32 mask = (2 << cmdq->q.llq.max_n_shift) - 1;
	u32 cons = readl(cmdq->q.cons_reg) & mask;
	u64 *entry, word;

	if ((readl(cmdq->gerror_reg) ^ readl(cmdq->gerrorn_reg)) & GERROR_CMDQ_ERR)
		return false;

	while (cons != (readl(cmdq->q.prod_reg) & mask)) {
		entry = (u64 *)cmdq->q.base +
			(cons & (mask >> 1)) * CMDQ_ENT_DWORDS;
		word = le64_to_cpu(READ_ONCE(entry[0]));

		switch (FIELD_GET(CMDQ_0_OP, word)) {
		case OP_ILLEGAL:
			soft_cmdq_error(soft, cons, CMDQ_ERR_CERROR_ILL_IDX);
			return true;
		case CMDQ_OP_CMD_SYNC:
			if (soft->unanswered) {
				soft->unanswered = false;
				soft_cmdq_error(soft, cons,
						CMDQ_ERR_CERROR_ATC_INV_IDX);
				return true;
			}
			soft->syncs++;
			if (FIELD_GET(CMDQ_SYNC_0_CS, word) ==
			    CMDQ_SYNC_0_CS_IRQ) {
				soft->msi_syncs++;
				/* The message, over the command itself */
				smp_store_release((u32 *)entry, 0);
			}
			break;
		case CMDQ_OP_ATC_INV:
			soft->atc_invs++;
			if (FIELD_GET(CMDQ_ATC_0_SID, word) == SID_DEAD)
				soft->unanswered = true;
			fallthrough;
		default:
			soft->cmds++;
		}
		cons = (cons + 1) & mask;
		writel(cons, cmdq->q.cons_reg);
	}
	return false;
}

/* Shows in STATUS what CONFIG asks for */
static void soft_follow_config(void __iomem *config, void __iomem *status)
{
	writel(readl(config) & BIT(0), status);
}

static int soft_cmdqv_thread(void *data)
{
	struct soft_cmdqv *soft = data;
	struct tegra241_cmdqv *cmdqv = soft->cmdqv;
	struct tegra241_vintf *vintf = cmdqv->vintfs[0];

	while (!kthread_should_stop()) {
		u64 map = 0;
		bool irq = false;
		u32 config;

		soft_follow_config(REG_CMDQV(cmdqv, CONFIG),
				   REG_CMDQV(cmdqv, STATUS));
		config = readl(REG_VINTF(vintf, CONFIG));
		/* Nobody else writes to it until STATUS follows */
		if (!soft->is_host && config & VINTF_EN &&
		    config & VINTF_HYP_OWN)
			writel(config & ~VINTF_HYP_OWN,
			       REG_VINTF(vintf, CONFIG));
		soft_follow_config(REG_VINTF(vintf, CONFIG),
				   REG_VINTF(vintf, STATUS));

		soft_cmdq_run(&soft->queues[0]);
		for (int lidx = 0; lidx < NUM_LVCMDQS; lidx++) {
			struct tegra241_vcmdq *vcmdq = vintf->lvcmdqs[lidx];

			soft_follow_config(REG_VCMDQ_PAGE0(vcmdq, CONFIG),
					   REG_VCMDQ_PAGE0(vcmdq, STATUS));
			if (readl(REG_VCMDQ_PAGE0(vcmdq, STATUS)) & VCMDQ_ENABLED)
				irq |= soft_cmdq_run(&soft->queues[1 + lidx]);
			if (readl(REG_VCMDQ_PAGE0(vcmdq, GERROR)) !=
			    readl(REG_VCMDQ_PAGE0(vcmdq, GERRORN)))
				map |= BIT_ULL(lidx);
		}
		writeq(map, REG_VINTF(vintf, LVCMDQ_ERR_MAP_64(0)));
		writel(map ? BIT(0) : 0, REG_CMDQV(cmdqv, VINTF_ERR_MAP));
		if (irq && soft->has_irq) {
			tegra241_cmdqv_isr(0, cmdqv);
			WRITE_ONCE(soft->irqs, soft->irqs + 1);
		}
		cond_resched();
	}
	return 0;
}

static void soft_free(void *mem)
{
	vfree(mem);
}

static void __iomem *soft_registers(struct kunit *test, size_t size)
{
	void *mem = vzalloc(size);

	KUNIT_ASSERT_NOT_NULL(test, mem);
	KUNIT_ASSERT_EQ(test, 0,
			kunit_add_action_or_reset(test, soft_free, mem));
	return (void __iomem *)mem;
}

/* Starts a CMDQV, whose VINTF0 is the hypervisor's own or that of a guest */
static struct soft_cmdqv *soft_cmdqv_start(struct kunit *test, bool is_host)
{
	struct soft_cmdqv *soft = test->priv;
	struct tegra241_cmdqv *cmdqv = soft->cmdqv;
	struct arm_smmu_device *smmu = &cmdqv->smmu;
	struct device *dev = soft->dev;

	KUNIT_ASSERT_EQ(test, 0,
			dma_coerce_mask_and_coherent(dev, DMA_BIT_MASK(64)));
	soft->is_host = is_host;

	/* Its own queue has MSIs, which VCMDQs cannot have */
	smmu->dev = dev;
	smmu->options = ARM_SMMU_OPT_TEGRA241_CMDQV | ARM_SMMU_OPT_MSIPOLL;
	smmu->base = soft_registers(test, SMMU_SIZE);
	smmu->page1 = smmu->base + SZ_64K;
	mutex_init(&smmu->streams_mutex);
	smmu->streams = RB_ROOT;
	writel(FIELD_PREP(IDR1_CMDQS, 7), smmu->base + ARM_SMMU_IDR1);
	smmu->cmdq.q.llq.max_n_shift = 7;
	KUNIT_ASSERT_EQ(test, 0,
			arm_smmu_init_one_queue(smmu, &smmu->cmdq.q, smmu->base,
						ARM_SMMU_CMDQ_PROD,
						ARM_SMMU_CMDQ_CONS,
						CMDQ_ENT_DWORDS, "cmdq"));
	arm_smmu_cmdq_set_gerror(&smmu->cmdq, smmu->base + ARM_SMMU_GERROR,
				 smmu->base + ARM_SMMU_GERRORN);
	KUNIT_ASSERT_EQ(test, 0, arm_smmu_cmdq_init(smmu, &smmu->cmdq));

	cmdqv->dev = dev;
	cmdqv->base = soft_registers(test, CMDQV_SIZE);
	cmdqv->num_vintfs = 1;
	cmdqv->num_vcmdqs = NUM_LVCMDQS;
	cmdqv->num_lvcmdqs_per_vintf = NUM_LVCMDQS;
	cmdqv->num_sids_per_vintf = 1;
	cmdqv->vintfs = kunit_kcalloc(test, 1, sizeof(*cmdqv->vintfs),
				      GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, cmdqv->vintfs);
	ida_init(&cmdqv->vintf_ids);
	KUNIT_ASSERT_EQ(test, 0, tegra241_cmdqv_init_structures(smmu));

	soft->queues[0].cmdq = &smmu->cmdq;
	for (int lidx = 0; lidx < NUM_LVCMDQS; lidx++)
		soft->queues[1 + lidx].cmdq =
			&cmdqv->vintfs[0]->lvcmdqs[lidx]->cmdq;
	soft->thread = kthread_create_on_cpu(soft_cmdqv_thread, soft, 1,
					     "soft-cmdqv/%u");
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, soft->thread);
	wake_up_process(soft->thread);

	KUNIT_ASSERT_EQ(test, 0, tegra241_cmdqv_hw_reset(smmu));
	return soft;
}

static int tegra241_cmdqv_test_init(struct kunit *test)
{
	struct soft_cmdqv *soft;

	/* Who waits for a queue has interrupts disabled */
	if (!cpu_online(1))
		kunit_skip(test, "needs two CPUs");
	KUNIT_ASSERT_EQ(test, 0, set_cpus_allowed_ptr(current, cpumask_of(0)));

	soft = kunit_kzalloc(test, sizeof(*soft), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, soft);
	soft->cmdqv = kunit_kzalloc(test, sizeof(*soft->cmdqv), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, soft->cmdqv);
	soft->dev = kunit_device_register(test, "soft-cmdqv");
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, soft->dev);
	test->priv = soft;
	return 0;
}

static void tegra241_cmdqv_test_exit(struct kunit *test)
{
	struct soft_cmdqv *soft = test->priv;

	if (!soft)
		return;
	if (!IS_ERR_OR_NULL(soft->thread))
		kthread_stop(soft->thread);
	/* The queues go before what they are part of */
	kunit_device_unregister(test, soft->dev);
	if (soft->cmdqv->vintfs && soft->cmdqv->vintfs[0])
		tegra241_cmdqv_remove_vintf(soft->cmdqv, 0);
}

static struct arm_smmu_cmd tlbi(void)
{
	return arm_smmu_make_cmd_op(CMDQ_OP_TLBI_NH_VA);
}

/* The queue for a command of the host, and that of this CPU's VCMDQ */
static struct arm_smmu_cmdq *choose(struct soft_cmdqv *soft, u8 op)
{
	struct arm_smmu_cmd cmd = arm_smmu_make_cmd_op(op);
	struct arm_smmu_device *smmu = &soft->cmdqv->smmu;

	return smmu->impl_ops->get_secondary_cmdq(smmu, &cmd);
}

static int issue(struct soft_cmdqv *soft, struct arm_smmu_cmdq *cmdq,
		 struct arm_smmu_cmd *cmds, int n, bool sync)
{
	return arm_smmu_cmdq_issue_cmdlist(&soft->cmdqv->smmu, cmdq, cmds, n,
					   sync);
}

/* The host's commands go to VCMDQs, with CMD_SYNCs that these can do. */
static void commands(struct kunit *test)
{
	struct soft_cmdqv *soft = soft_cmdqv_start(test, true);
	struct arm_smmu_cmdq *cmdq = choose(soft, CMDQ_OP_TLBI_NH_VA);
	struct arm_smmu_cmd cmds[] = { tlbi(), tlbi(), tlbi() };
	struct soft_cmdq *main = &soft->queues[0], *own = &soft->queues[1];
	unsigned int syncs = main->syncs, msi_syncs = main->msi_syncs;

	KUNIT_ASSERT_PTR_EQ(test, cmdq, own->cmdq);
	KUNIT_EXPECT_PTR_EQ(test, cmdq, choose(soft, CMDQ_OP_CFGI_STE));

	KUNIT_EXPECT_EQ(test, 0, issue(soft, cmdq, cmds, 3, true));
	KUNIT_EXPECT_EQ(test, 3, own->cmds);
	KUNIT_EXPECT_EQ(test, 1, own->syncs);
	KUNIT_EXPECT_EQ(test, 0, own->msi_syncs);
	KUNIT_EXPECT_EQ(test, syncs, main->syncs);

	/* More than there are slots */
	for (int i = 0; i < 200; i++)
		KUNIT_EXPECT_EQ(test, 0, issue(soft, cmdq, cmds, 3, i % 2));
	KUNIT_EXPECT_EQ(test, 0, issue(soft, cmdq, NULL, 0, true));
	KUNIT_EXPECT_EQ(test, 603, own->cmds);
	KUNIT_EXPECT_EQ(test, 0, own->errors);

	KUNIT_EXPECT_EQ(test, 0, issue(soft, main->cmdq, cmds, 3, true));
	KUNIT_EXPECT_EQ(test, 3, main->cmds);
	KUNIT_EXPECT_EQ(test, syncs + 1, main->syncs);
	KUNIT_EXPECT_EQ(test, msi_syncs + 1, main->msi_syncs);
}

/* What the VCMDQs of a guest cannot do goes to the queue of the SMMU. */
static void supports_cmd(struct kunit *test)
{
	struct soft_cmdqv *soft = soft_cmdqv_start(test, false);

	KUNIT_EXPECT_PTR_EQ(test, soft->queues[1].cmdq,
			    choose(soft, CMDQ_OP_TLBI_NH_VA));
	KUNIT_EXPECT_PTR_EQ(test, soft->queues[1].cmdq,
			    choose(soft, CMDQ_OP_ATC_INV));
	KUNIT_EXPECT_NULL(test, choose(soft, CMDQ_OP_CFGI_STE));
}

/* An error is handled by who waits, in the registers of that queue. */
static void illegal(struct kunit *test)
{
	struct soft_cmdqv *soft = soft_cmdqv_start(test, true);
	struct soft_cmdq *main = &soft->queues[0], *own = &soft->queues[1];
	struct arm_smmu_cmd cmds[] = { tlbi(),
				       arm_smmu_make_cmd_op(OP_ILLEGAL),
				       tlbi() };

	KUNIT_EXPECT_EQ(test, -EIO, issue(soft, own->cmdq, cmds, 3, true));
	KUNIT_EXPECT_EQ(test, 2, own->cmds);
	KUNIT_EXPECT_EQ(test, 1, own->errors);
	KUNIT_EXPECT_EQ(test, readl(own->cmdq->gerror_reg),
			readl(own->cmdq->gerrorn_reg));
	KUNIT_EXPECT_EQ(test, 0, readl(main->cmdq->gerrorn_reg));
	KUNIT_EXPECT_EQ(test, 0, issue(soft, own->cmdq, cmds, 1, true));
}

/* One that nobody waits for is handled by the interrupt, by way of the map. */
static void interrupt(struct kunit *test)
{
	struct soft_cmdqv *soft = soft_cmdqv_start(test, true);
	struct soft_cmdq *own = &soft->queues[1];
	struct arm_smmu_cmd cmds[] = { arm_smmu_make_cmd_op(OP_ILLEGAL),
				       tlbi() };
	u32 other = GERROR_MSI_GERROR_ABT_ERR;

	/* Another error, which is acknowledged beside it */
	writel(other, own->cmdq->gerror_reg);
	soft->has_irq = true;
	KUNIT_EXPECT_EQ(test, 0, issue(soft, own->cmdq, cmds, 2, false));
	for (int i = 0; i < 10000 && !READ_ONCE(soft->irqs); i++)
		usleep_range(100, 200);
	KUNIT_EXPECT_EQ(test, 1, soft->irqs);
	KUNIT_EXPECT_EQ(test, other | GERROR_CMDQ_ERR,
			readl(own->cmdq->gerrorn_reg));

	KUNIT_EXPECT_EQ(test, 0, issue(soft, own->cmdq, NULL, 0, true));
	KUNIT_EXPECT_EQ(test, 1, own->cmds);
	KUNIT_EXPECT_EQ(test, 1, own->errors);
}

/*
 * What a VCMDQ has found out about a device ends with an attach. Without
 * interrupts there is no time to invalidate twice, unless that may help.
 */
static void attach_forgets(struct kunit *test)
{
	struct soft_cmdqv *soft = soft_cmdqv_start(test, true);
	struct soft_cmdq *own = &soft->queues[1];
	struct arm_smmu_stream stream = { .id = SID_DEAD };
	struct arm_smmu_master master = {
		.smmu = &soft->cmdqv->smmu,
		.streams = &stream,
		.num_streams = 1,
	};
	struct arm_smmu_cmd cmd =
		arm_smmu_make_cmd_atc_inv_all(SID_DEAD, IOMMU_NO_PASID);
	unsigned long flags;

	for (int attached = 0; attached < 2; attached++) {
		/* Often enough that the device counts as dead for a minute */
		for (int i = 0; i < 8; i++) {
			own->atc_invs = 0;
			KUNIT_EXPECT_EQ(test, -EIO,
					issue(soft, own->cmdq, &cmd, 1, true));
			KUNIT_EXPECT_EQ(test, 2, own->atc_invs);
		}
		if (attached)
			arm_smmu_rust_cmdq_forget(&master);

		own->atc_invs = 0;
		local_irq_save(flags);
		KUNIT_EXPECT_EQ(test, -EIO,
				issue(soft, own->cmdq, &cmd, 1, true));
		local_irq_restore(flags);
		KUNIT_EXPECT_EQ(test, 1 + attached, own->atc_invs);
	}
}

/* After a reset, nothing is executed that was issued before, and all else is. */
static void reset(struct kunit *test)
{
	struct soft_cmdqv *soft = soft_cmdqv_start(test, true);
	struct soft_cmdq *own = &soft->queues[1];
	struct arm_smmu_cmd cmds[] = { tlbi(), tlbi(), tlbi() };
	struct arm_smmu_cmd illegal = arm_smmu_make_cmd_op(OP_ILLEGAL);

	for (int i = 0; i < 50; i++) {
		KUNIT_EXPECT_EQ(test, 0, issue(soft, own->cmdq, cmds, 3, true));
		/* Stops the queue, of which nobody is told */
		if (i % 2)
			KUNIT_EXPECT_EQ(test, 0,
					issue(soft, own->cmdq, &illegal, 1, false));
		KUNIT_ASSERT_EQ(test, 0,
				tegra241_cmdqv_hw_reset(&soft->cmdqv->smmu));
	}
	KUNIT_EXPECT_EQ(test, 150, own->cmds);
	KUNIT_EXPECT_EQ(test, 50, own->syncs);
	KUNIT_EXPECT_EQ(test, readl(own->cmdq->gerror_reg),
			readl(own->cmdq->gerrorn_reg));
}

static struct kunit_case tegra241_cmdqv_test_cases[] = {
	KUNIT_CASE(commands),
	KUNIT_CASE(supports_cmd),
	KUNIT_CASE(illegal),
	KUNIT_CASE(interrupt),
	KUNIT_CASE(attach_forgets),
	KUNIT_CASE(reset),
	{}
};

static struct kunit_suite tegra241_cmdqv_test_suite = {
	.name = "tegra241_cmdqv",
	.init = tegra241_cmdqv_test_init,
	.exit = tegra241_cmdqv_test_exit,
	.test_cases = tegra241_cmdqv_test_cases,
};

kunit_test_suite(tegra241_cmdqv_test_suite);
