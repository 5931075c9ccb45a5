/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What it takes to play a VMM with a virtual SMMUv3 from user space: a vfio
 * device whose stage 2 is an IOAS and whose stage 1 is the program's own, the
 * commands of the SMMU's command queue, and what DMA sees. The device, its
 * memory and its DMA are libvfio's.
 */
#ifndef __SELFTEST_IOMMUFD_ARM_SMMUV3_H
#define __SELFTEST_IOMMUFD_ARM_SMMUV3_H

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/const.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest.h"

/* ---- Commands: Arm SMMU architecture (IHI 0070), chapter 4 ---- */

enum {
	OP_CFGI_CD = 0x05,
	OP_CFGI_CD_ALL = 0x06,
	OP_TLBI_NH_ALL = 0x10,
	OP_TLBI_NH_ASID = 0x11,
	OP_TLBI_NH_VA = 0x12,
	OP_TLBI_NH_VAA = 0x13,
	OP_TLBI_NSNH_ALL = 0x30,
	OP_ATC_INV = 0x40,
	OP_SYNC = 0x46,
};

/* In memory as the SMMU has it: 128 bits, little-endian. */
struct smmu_cmd {
	uint64_t w[2];
};

static_assert(sizeof(struct smmu_cmd) ==
	      sizeof(struct iommu_viommu_arm_smmuv3_invalidate),
	      "a command is an entry of the array");

/* Reserved in each command that a guest can send: SSec is for Secure state. */
#define BIT_SSEC 10

static inline struct smmu_cmd cmd_make(uint64_t w0, uint64_t w1)
{
	return (struct smmu_cmd){ { htole64(w0), htole64(w1) } };
}

/* Bits @hi to @lo of the 128. A field never crosses the middle. */
static inline uint64_t cmd_get(struct smmu_cmd cmd, int hi, int lo)
{
	return le64toh(cmd.w[lo / 64]) << (63 - hi % 64) >> (63 - hi + lo);
}

static inline struct smmu_cmd cmd_set(struct smmu_cmd cmd, int hi, int lo,
				      uint64_t val)
{
	uint64_t mask = ~0ULL >> (63 - hi + lo) << (lo % 64);

	cmd.w[lo / 64] &= ~htole64(mask);
	cmd.w[lo / 64] |= htole64(val << (lo % 64) & mask);
	return cmd;
}

static inline struct smmu_cmd cmd_flip(struct smmu_cmd cmd, int bit)
{
	cmd.w[bit / 64] ^= htole64(1ULL << (bit % 64));
	return cmd;
}

static inline struct smmu_cmd cmd_tlbi_va(uint16_t asid, uint64_t iova)
{
	return cmd_make((uint64_t)asid << 48 | OP_TLBI_NH_VA, iova | 1);
}

static inline struct smmu_cmd cmd_cfgi_cd(uint32_t sid)
{
	return cmd_make((uint64_t)sid << 32 | OP_CFGI_CD, 1);
}

/* On a little-endian machine, as only constants can stand here. */
#if __BYTE_ORDER == __LITTLE_ENDIAN
#define CONST_CMD(w0, w1) { { (w0), (w1) } }
#else
#define CONST_CMD(w0, w1) { { __builtin_bswap64(w0), __builtin_bswap64(w1) } }
#endif

#define ASID_FIELD ((uint64_t)ASID << 48)
#define VSID_FIELD ((uint64_t)VSID << 32)

static inline bool same_iommu(const char *bdf, const char *other)
{
	char path[2][400], real[2][PATH_MAX];
	int i;

	snprintf(path[0], sizeof(path[0]), "/sys/bus/pci/devices/%s/iommu", bdf);
	snprintf(path[1], sizeof(path[1]), "/sys/bus/pci/devices/%s/iommu",
		 other);
	for (i = 0; i < 2; i++)
		if (!realpath(path[i], real[i]))
			return false;
	return !strcmp(real[0], real[1]);
}

/* ---- A VM: everything from /dev/iommu to the stage 1 of its device ---- */

/* Memory of the "guest"; clear of the window that the host keeps for MSIs. */
#define RAM_BASE 0x40000000ULL
#define RAM_SIZE 0x200000UL

/* The end of it is for the driver in libvfio that has the device do DMA. */
#define DRIVER_SIZE 0x100000UL
#define DRIVER_BASE (RAM_BASE + RAM_SIZE - DRIVER_SIZE)

/* Stage 1 has a granule of 4 KB, whatever the pages of the host are. */
#define GRANULE 4096UL

/* Two neighbours, so that a single DMA sees both. */
#define IOVA_A 0x10000000ULL
#define IOVA_B (IOVA_A + GRANULE)
#define IOVA_OUT 0x11000000ULL
/* Not mapped: what arrays are filled up with invalidates this one. */
#define IOVA_ELSEWHERE 0x20000000ULL

#define ASID 0x51
#define ASID_2 0x52

/* Another number than the device's own, to see it translated. */
#define VSID 0x1234
#define VSID_UNLINKED 0x4321

struct vm {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	uint32_t s2_id;
	uint32_t viommu_id;
	uint32_t vdevice_id;
	uint32_t s1_id;
	uint32_t vsid;

	struct iommu_hw_info_arm_smmuv3 hw;
	/* ATC_INV reaches an ATC, or a device that does not mind. */
	bool atc;

	struct dma_region ram;
	uint64_t ram_used;
	/* All of these are addresses in guest memory. */
	uint64_t tables;
	uint64_t tables_2;
	uint64_t cd;
	uint64_t out;
	/* What the pages A and B lead to now, and after a change. */
	uint64_t now[2];
	uint64_t next[2];

	unsigned int looks;
	uint64_t tag;
	uint64_t tag_old[2];
	uint64_t tag_new[2];

	/* Why there is none, and whether that is a reason to skip. */
	char error[800];
	bool skip;
};

static inline int vm_fail(struct vm *vm, bool skip, const char *fmt, ...)
{
	int err = errno;
	va_list ap;
	size_t len;

	va_start(ap, fmt);
	vsnprintf(vm->error, sizeof(vm->error), fmt, ap);
	va_end(ap);
	len = strlen(vm->error);
	if (err)
		snprintf(vm->error + len, sizeof(vm->error) - len, ": %s",
			 strerror(err));
	vm->skip = skip;
	return -1;
}

static inline uint64_t *vm_u64(struct vm *vm, uint64_t gpa)
{
	return (uint64_t *)(vm->ram.vaddr + (gpa - RAM_BASE));
}

/* The SMMU and the device read what is written here. */
static inline void vm_store(struct vm *vm, uint64_t gpa, uint64_t val)
{
	__atomic_store_n(vm_u64(vm, gpa), val, __ATOMIC_SEQ_CST);
}

static inline uint64_t vm_load(struct vm *vm, uint64_t gpa)
{
	return __atomic_load_n(vm_u64(vm, gpa), __ATOMIC_SEQ_CST);
}

static inline uint64_t vm_page(struct vm *vm)
{
	uint64_t gpa = RAM_BASE + vm->ram_used;

	vm->ram_used += GRANULE;
	if (vm->ram_used > RAM_SIZE - DRIVER_SIZE)
		abort();
	return gpa;
}

#define PTE_VALID _BITULL(0)
#define PTE_TABLE_OR_PAGE _BITULL(1)
#define PTE_AP_UNPRIV _BITULL(6)
#define PTE_SH_INNER (3ULL << 8)
#define PTE_AF _BITULL(10)
#define PTE_NG _BITULL(11)
#define PTE_ADDR 0x0000fffffffff000ULL

/* VMSAv8-64, four levels of 4 KB tables. The caches of the SMMU stay stale. */
static inline void vm_map(struct vm *vm, uint64_t tables, uint64_t iova,
			  uint64_t gpa)
{
	int shift;

	for (shift = 39; shift > 12; shift -= 9) {
		uint64_t at = tables + (iova >> shift & 0x1ff) * 8;

		if (!(vm_load(vm, at) & PTE_VALID))
			vm_store(vm, at, vm_page(vm) | PTE_TABLE_OR_PAGE |
						 PTE_VALID);
		tables = vm_load(vm, at) & PTE_ADDR;
	}
	vm_store(vm, tables + (iova >> 12 & 0x1ff) * 8,
		 gpa | PTE_NG | PTE_AF | PTE_SH_INNER | PTE_AP_UNPRIV |
			 PTE_TABLE_OR_PAGE | PTE_VALID);
}

#define CD_T0SZ_48 (64ULL - 48)
#define CD_IR0_WBRA _BITULL(8)
#define CD_OR0_WBRA _BITULL(10)
#define CD_SH0_INNER (3ULL << 12)
#define CD_EPD1 _BITULL(30)
#define CD_V _BITULL(31)
#define CD_IPS_40 (2ULL << 32)
#define CD_AA64 _BITULL(41)
#define CD_R _BITULL(45)
#define CD_A _BITULL(46)
#define CD_ASET _BITULL(47)

static inline void vm_write_cd(struct vm *vm, uint64_t tables, uint16_t asid)
{
	vm_store(vm, vm->cd + 8, tables);
	vm_store(vm, vm->cd + 24, 0xff); /* MAIR: normal memory, write-back */
	vm_store(vm, vm->cd,
		 (uint64_t)asid << 48 | CD_ASET | CD_A | CD_R | CD_AA64 |
			 CD_IPS_40 | CD_V | CD_EPD1 | CD_SH0_INNER |
			 CD_OR0_WBRA | CD_IR0_WBRA | CD_T0SZ_48);
}

#define STE_V _BITULL(0)
#define STE_CONFIG_S1 (5ULL << 1)
#define STE_S1CIR_WBRA _BITULL(2)
#define STE_S1COR_WBRA _BITULL(4)
#define STE_S1CSH_INNER (3ULL << 6)
#define STE_EATS_TRANS _BITULL(28)

static inline int vm_destroy(struct vm *vm, uint32_t id)
{
	struct iommu_destroy arg = { .size = sizeof(arg), .id = id };

	return ioctl(vm->iommu->iommufd, IOMMU_DESTROY, &arg);
}

static inline int vm_alloc_hwpt(struct vm *vm, uint32_t flags, uint32_t pt_id,
				uint32_t type, void *data, uint32_t len,
				uint32_t *id)
{
	struct iommu_hwpt_alloc arg = {
		.size = sizeof(arg),
		.flags = flags,
		.dev_id = vm->device->dev_id,
		.pt_id = pt_id,
		.data_type = type,
		.data_len = len,
		.data_uptr = (uintptr_t)data,
	};

	if (ioctl(vm->iommu->iommufd, IOMMU_HWPT_ALLOC, &arg))
		return -1;
	*id = arg.out_hwpt_id;
	return 0;
}

static inline int vm_alloc_s2(struct vm *vm, uint32_t *id)
{
	return vm_alloc_hwpt(vm, IOMMU_HWPT_ALLOC_NEST_PARENT, vm->iommu->ioas_id,
			     IOMMU_HWPT_DATA_NONE, NULL, 0, id);
}

static inline int vm_alloc_viommu(struct vm *vm, uint32_t s2_id, uint32_t *id)
{
	struct iommu_viommu_alloc arg = {
		.size = sizeof(arg),
		.type = IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
		.dev_id = vm->device->dev_id,
		.hwpt_id = s2_id,
	};

	if (ioctl(vm->iommu->iommufd, IOMMU_VIOMMU_ALLOC, &arg))
		return -1;
	*id = arg.out_viommu_id;
	return 0;
}

static inline int vm_alloc_vdevice(struct vm *vm, uint32_t vsid, uint32_t *id)
{
	struct iommu_vdevice_alloc arg = {
		.size = sizeof(arg),
		.viommu_id = vm->viommu_id,
		.dev_id = vm->device->dev_id,
		.virt_id = vsid,
	};

	if (ioctl(vm->iommu->iommufd, IOMMU_VDEVICE_ALLOC, &arg))
		return -1;
	*id = arg.out_vdevice_id;
	return 0;
}

static inline int vm_attach(struct vm *vm, uint32_t pt_id)
{
	struct vfio_device_attach_iommufd_pt arg = {
		.argsz = sizeof(arg),
		.pt_id = pt_id,
	};

	return ioctl(vm->device->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &arg);
}

static inline int vm_hw_info(struct vm *vm)
{
	struct iommu_hw_info arg = {
		.size = sizeof(arg),
		.dev_id = vm->device->dev_id,
		.data_len = sizeof(vm->hw),
		.data_uptr = (uintptr_t)&vm->hw,
	};

	if (ioctl(vm->iommu->iommufd, IOMMU_GET_HW_INFO, &arg))
		return vm_fail(vm, errno == EOPNOTSUPP,
			       "IOMMU_GET_HW_INFO of %s", vm->device->bdf);
	errno = 0;
	if (arg.out_data_type != IOMMU_HW_INFO_TYPE_ARM_SMMUV3)
		return vm_fail(vm, true, "%s is not behind an SMMUv3 (hw_info type %u)",
			       vm->device->bdf, arg.out_data_type);
	vm->atc = !(arg.out_capabilities & IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED);
	return 0;
}

static inline int vm_attach_stage1(struct vm *vm)
{
	struct iommu_hwpt_arm_smmuv3 vste = {
		.ste = {
			htole64(vm->cd | STE_CONFIG_S1 | STE_V),
			htole64(STE_S1CSH_INNER | STE_S1COR_WBRA |
				STE_S1CIR_WBRA |
				(vm->atc ? STE_EATS_TRANS : 0)),
		},
	};

	if (vm_alloc_hwpt(vm, 0, vm->viommu_id, IOMMU_HWPT_DATA_ARM_SMMUV3,
			  &vste, sizeof(vste), &vm->s1_id))
		return -1;
	return vm_attach(vm, vm->s1_id);
}

static inline void vm_close(struct vm *vm)
{
	/* Whatever is left of the objects goes away with the descriptors. */
	if (vm->device)
		vfio_pci_device_cleanup(vm->device);
	if (vm->iommu)
		iommu_cleanup(vm->iommu);
	if (vm->ram.vaddr)
		munmap(vm->ram.vaddr, vm->ram.size);
	vm->device = NULL;
	vm->iommu = NULL;
	vm->ram.vaddr = NULL;
}

/* libvfio has a driver that makes the device do DMA. */
static inline bool vm_has_dma(const struct vm *vm)
{
	return vm->device->driver.ops;
}

/* QEMU's educational device, which has no ATC and does not mind. */
static inline bool vm_is_edu(const struct vm *vm)
{
	return vm_has_dma(vm) && !strcmp(vm->device->driver.ops->name, "edu");
}

/* The device has to be attached to its stage 1. */
static inline void vm_init_driver(struct vm *vm)
{
	if (!vm_has_dma(vm))
		return;
	vm->device->driver.region = (struct dma_region){
		.vaddr = vm->ram.vaddr + (DRIVER_BASE - RAM_BASE),
		.iova = DRIVER_BASE,
		.size = DRIVER_SIZE,
	};
	vfio_pci_driver_init(vm->device);
}

static inline void vm_init_tables(struct vm *vm)
{
	uint64_t gpa;
	int i;

	vm->tables = vm_page(vm);
	vm->tables_2 = vm_page(vm);
	vm->cd = vm_page(vm);
	vm->out = vm_page(vm);
	for (i = 0; i < 2; i++) {
		vm->now[i] = vm_page(vm);
		vm->next[i] = vm_page(vm);
		vm_map(vm, vm->tables, IOVA_A + i * GRANULE, vm->now[i]);
	}
	vm_map(vm, vm->tables, IOVA_OUT, vm->out);
	vm_map(vm, vm->tables_2, IOVA_OUT, vm->out);
	/* Where libvfio takes it to be, which knows of no stage 1. */
	for (gpa = DRIVER_BASE; gpa < RAM_BASE + RAM_SIZE; gpa += GRANULE) {
		vm_map(vm, vm->tables, gpa, gpa);
		vm_map(vm, vm->tables_2, gpa, gpa);
	}
	vm_write_cd(vm, vm->tables, ASID);
}

/* Makes a VM of the device. If that is not possible, vm->error says why. */
static inline int vm_open(struct vm *vm, const char *bdf)
{
	memset(vm, 0, sizeof(*vm));
	vm->vsid = VSID;
	errno = 0;
	if (!bdf)
		return vm_fail(vm, true, "no other device behind the same SMMU was given");

	/* Shared, so that a fork does not move it away from the device. */
	vm->ram = (struct dma_region){
		.vaddr = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_ANONYMOUS, -1, 0),
		.iova = RAM_BASE,
		.size = RAM_SIZE,
	};
	if (vm->ram.vaddr == MAP_FAILED) {
		vm->ram.vaddr = NULL;
		return vm_fail(vm, false, "memory for the guest");
	}
	vm->iommu = iommu_init(MODE_IOMMUFD);
	vm->device = vfio_pci_device_init(bdf, vm->iommu);
	iommu_map(vm->iommu, &vm->ram);
	if (vm_hw_info(vm))
		return -1;

	if (vm_alloc_s2(vm, &vm->s2_id))
		return vm_fail(vm, errno == EOPNOTSUPP,
			       "no nesting parent: the SMMU has no stage 2?");
	if (vm_alloc_viommu(vm, vm->s2_id, &vm->viommu_id))
		return vm_fail(vm, errno == EOPNOTSUPP,
			       "no vIOMMU: the SMMU has neither CANWBS nor S2FWB?");
	if (vm_alloc_vdevice(vm, vm->vsid, &vm->vdevice_id))
		return vm_fail(vm, errno == EOPNOTSUPP,
			       "no vDEVICE: the device has several streams?");
	vm_init_tables(vm);
	if (vm_attach_stage1(vm))
		return vm_fail(vm, false, "cannot attach stage 1");
	vm_init_driver(vm);
	return 0;
}

/* ---- Invalidation ---- */

struct answer {
	int err;
	uint32_t num;
	uint32_t code;
};

#define ILL IOMMU_VIOMMU_ARM_SMMUV3_CERROR_ILL

/* The most entries that a call takes. */
#define ENTRY_NUM_MAX 524288U

static inline struct answer answer(int err, uint32_t num, uint32_t code)
{
	return (struct answer){ .err = err, .num = num, .code = code };
}

static inline struct iommu_hwpt_invalidate
invalidate_arg(struct vm *vm, const void *array, uint32_t entry_len, uint32_t n)
{
	return (struct iommu_hwpt_invalidate){
		.size = sizeof(struct iommu_hwpt_invalidate),
		.hwpt_id = vm->viommu_id,
		.data_uptr = (uintptr_t)array,
		.data_type = IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
		.entry_len = entry_len,
		.entry_num = n,
	};
}

static inline struct answer invalidate_call(struct vm *vm,
					    struct iommu_hwpt_invalidate *arg)
{
	int err = ioctl(vm->iommu->iommufd, IOMMU_HWPT_INVALIDATE, arg) ? errno : 0;

	return answer(err, arg->entry_num, arg->out_driver_error_code);
}

static inline struct answer invalidate_array(struct vm *vm, const void *array,
					     uint32_t entry_len, uint32_t n)
{
	struct iommu_hwpt_invalidate arg =
		invalidate_arg(vm, array, entry_len, n);

	return invalidate_call(vm, &arg);
}

static inline struct answer invalidate(struct vm *vm,
				       const struct smmu_cmd *cmds, uint32_t n)
{
	return invalidate_array(vm, cmds, sizeof(*cmds), n);
}

/* ---- What DMA sees ---- */

enum change {
	/* The page-table entries of A and B lead to other pages. */
	CHANGE_PAGES,
	/* The CD has another ASID and other tables: no TLBI is of any help. */
	CHANGE_CD,
};

enum seen {
	SEEN_NEITHER,
	SEEN_OLD,
	SEEN_NEW,
	/* For expectations: one of the two, but no matter which. */
	SEEN_EITHER,
};

#define MAX_LOOKS 8

/* As much as libvfio's driver of igb copies at least, to send it as a packet. */
#define LOOK_SIZE 64

/* What DMA read from A and B, by turns. */
struct sights {
	enum seen page[MAX_LOOKS][2];
};

/* Has the device copy the end of page A and the beginning of page B. */
static inline int dma_look(struct vm *vm)
{
	iova_t to = IOVA_OUT + vm->looks++ * LOOK_SIZE;

	return vfio_pci_driver_memcpy(vm->device, IOVA_B - LOOK_SIZE / 2, to,
				      LOOK_SIZE);
}

static inline void dma_tag(struct vm *vm, uint64_t gpa, uint64_t *tag)
{
	/* Never used before, and unlikely to be found by chance. */
	*tag = 0x7e5700000000da7aULL | ++vm->tag << 16;
	vm_store(vm, gpa, *tag);
	vm_store(vm, gpa + GRANULE - 8, *tag);
}

/*
 * Has DMA fill the caches of the SMMU, makes a change that makes them stale,
 * and looks again, as it proves nothing if they are not.
 */
static inline int dma_begin(struct vm *vm, enum change change)
{
	uint64_t tables = change == CHANGE_CD ? vm->tables_2 : vm->tables;
	int i;

	for (i = 0; i < 2; i++) {
		dma_tag(vm, vm->now[i], &vm->tag_old[i]);
		dma_tag(vm, vm->next[i], &vm->tag_new[i]);
	}
	vm->looks = 0;
	if (dma_look(vm))
		return -1;

	for (i = 0; i < 2; i++)
		vm_map(vm, tables, IOVA_A + i * GRANULE, vm->next[i]);
	if (change == CHANGE_CD)
		vm_write_cd(vm, tables, ASID_2);
	return dma_look(vm);
}

/* Back to a known state, with nothing stale. */
static inline struct answer dma_restore(struct vm *vm)
{
	struct smmu_cmd all[] = {
		cmd_make((uint64_t)vm->vsid << 32 | OP_CFGI_CD_ALL, 0),
		cmd_make(OP_TLBI_NSNH_ALL, 0),
	};
	int i;

	for (i = 0; i < 2; i++)
		vm_map(vm, vm->tables, IOVA_A + i * GRANULE, vm->now[i]);
	vm_write_cd(vm, vm->tables, ASID);
	return invalidate(vm, all, ARRAY_SIZE(all));
}

/* Looks once more, and says what all the looks have seen. */
static inline int dma_end(struct vm *vm, struct sights *sights)
{
	unsigned int look;
	int i;

	memset(sights, 0, sizeof(*sights));
	if (dma_look(vm))
		return -1;
	for (look = 0; look < vm->looks; look++) {
		for (i = 0; i < 2; i++) {
			uint64_t at = vm->out + look * LOOK_SIZE +
				      LOOK_SIZE / 2 - 8 + i * 8;
			uint64_t tag = vm_load(vm, at);

			/* Lest a DMA that gets lost next time pass for one. */
			vm_store(vm, at, 0);
			if (tag == vm->tag_old[i])
				sights->page[look][i] = SEEN_OLD;
			else if (tag == vm->tag_new[i])
				sights->page[look][i] = SEEN_NEW;
		}
	}
	return dma_restore(vm).err ? -1 : 0;
}

#endif /* __SELFTEST_IOMMUFD_ARM_SMMUV3_H */
