// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which streams a VM may name, and two VMs that are equal in everything they choose.
 */
#include <pthread.h>
#include <sched.h>

#include "iommufd_arm_smmuv3_test.h"

/* ---- Which streams a VM may name ---- */

FIXTURE(vsid)
{
	struct vm vm;
	struct kmsg kmsg;
};

FIXTURE_SETUP(vsid)
{
	kmsg_mark(&self->kmsg);
	setup_vm(_metadata, &self->vm, duts[0]);
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
		vfio_pci_device_cleanup(vm->device);
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
	if (l->what == DEVICE)
		vm->device = vfio_pci_device_init(duts[0], vm->iommu);
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
	vm_init_driver(&self->vm);
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

	vfio_pci_device_cleanup(self->vm.device);
	self->vm.device = NULL;
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
	if (!setup_vm(_metadata, &self->vm[0], duts[0]))
		return;
	if (!setup_vm(_metadata, &self->vm[1], duts[1]))
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

	if (!vm_has_dma(&self->vm[0]) || !vm_has_dma(&self->vm[1]))
		SKIP(return, NO_DMA);
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

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
