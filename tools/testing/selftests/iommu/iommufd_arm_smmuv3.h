/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What it takes to play a VMM with a virtual SMMUv3 from user space: a vfio
 * device whose stage 2 is an IOAS and whose stage 1 is the program's own, the
 * commands of the SMMU's command queue, and a device that does DMA on demand.
 */
#ifndef __SELFTEST_IOMMUFD_ARM_SMMUV3_H
#define __SELFTEST_IOMMUFD_ARM_SMMUV3_H

#include <assert.h>
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include <linux/const.h>
#include <linux/iommufd.h>
#include <linux/magic.h>
#include <linux/vfio.h>

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

/* ---- The device under test ---- */

struct dut {
	char bdf[NAME_MAX + 1];
	/* The cdev of vfio, such as /dev/vfio/devices/vfio0. */
	char cdev[300];
	/* QEMU's educational device, which does DMA on demand. */
	bool edu;
	/* It had no driver, so that it is up to us to take vfio-pci away. */
	bool bound_here;
	/* Why it cannot be used; empty if it can. */
	char unusable[700];
};

#define EDU_VENDOR 0x1234
#define EDU_DEVICE 0x11e8

static inline bool read_text(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY);
	ssize_t len;

	if (fd < 0)
		return false;
	len = read(fd, buf, size - 1);
	close(fd);
	buf[len > 0 ? len : 0] = 0;
	return len >= 0;
}

static inline bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	bool ok;

	if (fd < 0)
		return false;
	ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return ok;
}

static inline unsigned long pci_attr(const char *bdf, const char *name)
{
	char path[400], text[64];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", bdf, name);
	return read_text(path, text, sizeof(text)) ? strtoul(text, NULL, 0) : 0;
}

static inline bool pci_driver(const char *bdf, char *driver, size_t size)
{
	char path[400], link[PATH_MAX];
	ssize_t len;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/driver", bdf);
	len = readlink(path, link, sizeof(link) - 1);
	if (len < 0)
		return false;
	link[len] = 0;
	snprintf(driver, size, "%s", strrchr(link, '/') + 1);
	return true;
}

static inline void dut_set_driver(const char *bdf, const char *driver)
{
	char path[400];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/driver_override",
		 bdf);
	write_text(path, driver);
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/driver/unbind",
		 bdf);
	write_text(path, bdf);
	write_text("/sys/bus/pci/drivers_probe", bdf);
}

/* The first edu in the order of addresses, but not @other. */
static inline bool find_edu(const char *other, char *bdf, size_t size)
{
	struct dirent **list;
	bool found = false;
	int n, i;

	n = scandir("/sys/bus/pci/devices", &list, NULL, alphasort);
	for (i = 0; i < n; i++) {
		if (!found &&
		    pci_attr(list[i]->d_name, "vendor") == EDU_VENDOR &&
		    pci_attr(list[i]->d_name, "device") == EDU_DEVICE &&
		    strcmp(list[i]->d_name, other)) {
			snprintf(bdf, size, "%s", list[i]->d_name);
			found = true;
		}
		free(list[i]);
	}
	if (n >= 0)
		free(list);
	return found;
}

/* Both are PCI devices behind the same IOMMU. */
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

/*
 * Finds the device that @var names, or an edu. One that is named has to be
 * bound to vfio-pci already: it is not for a test to take a device away from
 * its driver. If there is @other, it must be one more device of its SMMU.
 */
static inline void dut_find(struct dut *dut, const char *var,
			    const struct dut *other)
{
	const char *named = getenv(var);
	char path[400], driver[64] = "";
	struct dirent *ent;
	DIR *dir;

	memset(dut, 0, sizeof(*dut));
	if (named && *named) {
		snprintf(dut->bdf, sizeof(dut->bdf), "%s", named);
	} else if (!find_edu(other ? other->bdf : "", dut->bdf,
			     sizeof(dut->bdf))) {
		snprintf(dut->unusable, sizeof(dut->unusable),
			 "no device: %s is not set, and there is no %sedu (%04x:%04x)",
			 var, other ? "other " : "", EDU_VENDOR, EDU_DEVICE);
		return;
	}
	if (other && !strcmp(dut->bdf, other->bdf)) {
		snprintf(dut->unusable, sizeof(dut->unusable),
			 "%s names the same device again", var);
		return;
	}
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s", dut->bdf);
	if (access(path, F_OK)) {
		snprintf(dut->unusable, sizeof(dut->unusable),
			 "there is no PCI device %s", dut->bdf);
		return;
	}
	dut->edu = pci_attr(dut->bdf, "vendor") == EDU_VENDOR &&
		   pci_attr(dut->bdf, "device") == EDU_DEVICE;

	if (!pci_driver(dut->bdf, driver, sizeof(driver)) &&
	    !(named && *named)) {
		dut_set_driver(dut->bdf, "vfio-pci");
		dut->bound_here = pci_driver(dut->bdf, driver, sizeof(driver));
	}

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev",
		 dut->bdf);
	dir = opendir(path);
	if (!dir) {
		snprintf(dut->unusable, sizeof(dut->unusable),
			 "%s has no vfio cdev (driver: %s): it must be bound to vfio-pci, and the kernel have CONFIG_VFIO_DEVICE_CDEV",
			 dut->bdf, *driver ? driver : "none");
		return;
	}
	while ((ent = readdir(dir)))
		if (ent->d_name[0] != '.')
			snprintf(dut->cdev, sizeof(dut->cdev),
				 "/dev/vfio/devices/%s", ent->d_name);
	closedir(dir);
	if (access(dut->cdev, R_OK | W_OK))
		snprintf(dut->unusable, sizeof(dut->unusable), "%s: %s",
			 dut->cdev, strerror(errno));
	else if (other && !same_iommu(dut->bdf, other->bdf))
		snprintf(dut->unusable, sizeof(dut->unusable),
			 "%s is not behind the SMMU of the first device",
			 dut->bdf);
}

static inline void dut_release(struct dut *dut)
{
	if (dut->bound_here)
		dut_set_driver(dut->bdf, "\n");
}

/* ---- A VM: everything from /dev/iommu to the stage 1 of its device ---- */

/* Memory of the "guest"; clear of the window that the host keeps for MSIs. */
#define RAM_BASE 0x40000000ULL
#define RAM_SIZE 0x100000UL

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
	int iommufd;
	int device;
	uint32_t dev_id;
	uint32_t ioas_id;
	uint32_t s2_id;
	uint32_t viommu_id;
	uint32_t vdevice_id;
	uint32_t s1_id;
	uint32_t vsid;

	struct iommu_hw_info_arm_smmuv3 hw;
	/* ATC_INV reaches an ATC, or a device that does not mind. */
	bool atc;

	bool edu;
	uint64_t bar0;
	uint64_t config;

	uint8_t *ram;
	uint64_t ram_used;
	/* All of these are addresses in guest memory. */
	uint64_t tables;
	uint64_t tables_2;
	uint64_t cd;
	uint64_t out;
	/* What the pages A and B lead to now, and after a change. */
	uint64_t now[2];
	uint64_t next[2];

	/* DMAs whose result is still in the device. */
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
	return (uint64_t *)(vm->ram + (gpa - RAM_BASE));
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
	if (vm->ram_used > RAM_SIZE)
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

	return ioctl(vm->iommufd, IOMMU_DESTROY, &arg);
}

static inline int vm_alloc_hwpt(struct vm *vm, uint32_t flags, uint32_t pt_id,
				uint32_t type, void *data, uint32_t len,
				uint32_t *id)
{
	struct iommu_hwpt_alloc arg = {
		.size = sizeof(arg),
		.flags = flags,
		.dev_id = vm->dev_id,
		.pt_id = pt_id,
		.data_type = type,
		.data_len = len,
		.data_uptr = (uintptr_t)data,
	};

	if (ioctl(vm->iommufd, IOMMU_HWPT_ALLOC, &arg))
		return -1;
	*id = arg.out_hwpt_id;
	return 0;
}

static inline int vm_alloc_s2(struct vm *vm, uint32_t *id)
{
	return vm_alloc_hwpt(vm, IOMMU_HWPT_ALLOC_NEST_PARENT, vm->ioas_id,
			     IOMMU_HWPT_DATA_NONE, NULL, 0, id);
}

static inline int vm_alloc_viommu(struct vm *vm, uint32_t s2_id, uint32_t *id)
{
	struct iommu_viommu_alloc arg = {
		.size = sizeof(arg),
		.type = IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
		.dev_id = vm->dev_id,
		.hwpt_id = s2_id,
	};

	if (ioctl(vm->iommufd, IOMMU_VIOMMU_ALLOC, &arg))
		return -1;
	*id = arg.out_viommu_id;
	return 0;
}

static inline int vm_alloc_vdevice(struct vm *vm, uint32_t vsid, uint32_t *id)
{
	struct iommu_vdevice_alloc arg = {
		.size = sizeof(arg),
		.viommu_id = vm->viommu_id,
		.dev_id = vm->dev_id,
		.virt_id = vsid,
	};

	if (ioctl(vm->iommufd, IOMMU_VDEVICE_ALLOC, &arg))
		return -1;
	*id = arg.out_vdevice_id;
	return 0;
}

static inline int vm_ioas_map(struct vm *vm, void *addr, uint64_t len,
			      uint64_t iova)
{
	struct iommu_ioas_map arg = {
		.size = sizeof(arg),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
			 IOMMU_IOAS_MAP_WRITEABLE,
		.ioas_id = vm->ioas_id,
		.user_va = (uintptr_t)addr,
		.length = len,
		.iova = iova,
	};

	return ioctl(vm->iommufd, IOMMU_IOAS_MAP, &arg);
}

static inline int vm_ioas_unmap(struct vm *vm, uint64_t iova, uint64_t len)
{
	struct iommu_ioas_unmap arg = {
		.size = sizeof(arg),
		.ioas_id = vm->ioas_id,
		.iova = iova,
		.length = len,
	};

	return ioctl(vm->iommufd, IOMMU_IOAS_UNMAP, &arg);
}

/* Opens the device and makes it one of this VM's, not attached to anything. */
static inline int vm_open_device(struct vm *vm, const struct dut *dut)
{
	struct vfio_device_bind_iommufd bind = {
		.argsz = sizeof(bind),
		.iommufd = vm->iommufd,
	};

	vm->device = open(dut->cdev, O_RDWR);
	if (vm->device < 0)
		return -1;
	if (ioctl(vm->device, VFIO_DEVICE_BIND_IOMMUFD, &bind)) {
		close(vm->device);
		vm->device = -1;
		return -1;
	}
	vm->dev_id = bind.out_devid;
	return 0;
}

static inline int vm_attach(struct vm *vm, uint32_t pt_id)
{
	struct vfio_device_attach_iommufd_pt arg = {
		.argsz = sizeof(arg),
		.pt_id = pt_id,
	};

	return ioctl(vm->device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &arg);
}

static inline int vm_hw_info(struct vm *vm, const struct dut *dut)
{
	struct iommu_hw_info arg = {
		.size = sizeof(arg),
		.dev_id = vm->dev_id,
		.data_len = sizeof(vm->hw),
		.data_uptr = (uintptr_t)&vm->hw,
	};

	if (ioctl(vm->iommufd, IOMMU_GET_HW_INFO, &arg))
		return vm_fail(vm, errno == EOPNOTSUPP,
			       "IOMMU_GET_HW_INFO of %s", dut->bdf);
	errno = 0;
	if (arg.out_data_type != IOMMU_HW_INFO_TYPE_ARM_SMMUV3)
		return vm_fail(vm, true, "%s is not behind an SMMUv3 (hw_info type %u)",
			       dut->bdf, arg.out_data_type);
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
	if (vm->device >= 0)
		close(vm->device);
	if (vm->iommufd >= 0)
		close(vm->iommufd);
	if (vm->ram)
		munmap(vm->ram, RAM_SIZE);
	vm->device = -1;
	vm->iommufd = -1;
	vm->ram = NULL;
}

/* ---- QEMU's edu: copies up to 4096 bytes between an IOVA and a buffer ---- */

#define PCI_COMMAND_REG 4
#define PCI_COMMAND_MEMORY_MASTER 6

#define EDU_ID 0x00
#define EDU_DMA_SRC 0x80
#define EDU_DMA_DST 0x88
#define EDU_DMA_COUNT 0x90
#define EDU_DMA_CMD 0x98
#define EDU_DMA_RUN 1
#define EDU_DMA_TO_MEMORY 2
/* Where its buffer is, as seen by DMA. The CPU cannot look into it. */
#define EDU_BUFFER 0x40000ULL

static inline int edu_dma(struct vm *vm, uint64_t src, uint64_t dst,
			  uint64_t count, uint64_t cmd)
{
	struct timespec tick = { .tv_nsec = 2000000 };
	/* It takes 100 ms. This is for a machine that is slow, or a bug. */
	int ticks = 20000;
	uint32_t status;

	if (pwrite(vm->device, &src, 8, vm->bar0 + EDU_DMA_SRC) != 8 ||
	    pwrite(vm->device, &dst, 8, vm->bar0 + EDU_DMA_DST) != 8 ||
	    pwrite(vm->device, &count, 8, vm->bar0 + EDU_DMA_COUNT) != 8 ||
	    pwrite(vm->device, &cmd, 8, vm->bar0 + EDU_DMA_CMD) != 8)
		return -1;
	do {
		nanosleep(&tick, NULL);
		if (pread(vm->device, &status, 4, vm->bar0 + EDU_DMA_CMD) != 4)
			return -1;
	} while (status & EDU_DMA_RUN && --ticks);
	return ticks ? 0 : -1;
}

static inline int edu_enable(struct vm *vm)
{
	struct vfio_region_info info = { .argsz = sizeof(info) };
	uint16_t command;
	uint32_t id;

	info.index = VFIO_PCI_CONFIG_REGION_INDEX;
	if (ioctl(vm->device, VFIO_DEVICE_GET_REGION_INFO, &info))
		return -1;
	vm->config = info.offset;
	info.index = VFIO_PCI_BAR0_REGION_INDEX;
	if (ioctl(vm->device, VFIO_DEVICE_GET_REGION_INFO, &info))
		return -1;
	vm->bar0 = info.offset;

	if (pread(vm->device, &command, 2, vm->config + PCI_COMMAND_REG) != 2)
		return -1;
	command |= PCI_COMMAND_MEMORY_MASTER;
	if (pwrite(vm->device, &command, 2, vm->config + PCI_COMMAND_REG) != 2)
		return -1;
	if (pread(vm->device, &id, 4, vm->bar0 + EDU_ID) != 4)
		return -1;
	errno = 0;
	return (id & 0xff) == 0xed ? 0 : -1;
}

/* Makes a VM of the device. If that is not possible, vm->error says why. */
static inline int vm_open(struct vm *vm, const struct dut *dut)
{
	struct iommu_ioas_alloc ioas = { .size = sizeof(ioas) };
	int i;

	memset(vm, 0, sizeof(*vm));
	vm->iommufd = -1;
	vm->device = -1;
	vm->vsid = VSID;
	vm->edu = dut->edu;
	errno = 0;

	if (*dut->unusable)
		return vm_fail(vm, true, "%s", dut->unusable);

	vm->iommufd = open("/dev/iommu", O_RDWR);
	if (vm->iommufd < 0)
		return vm_fail(vm, true, "/dev/iommu");
	if (vm_open_device(vm, dut))
		return vm_fail(vm, false, "cannot bind %s to iommufd",
			       dut->cdev);
	if (vm_hw_info(vm, dut))
		return -1;

	if (ioctl(vm->iommufd, IOMMU_IOAS_ALLOC, &ioas))
		return vm_fail(vm, false, "IOMMU_IOAS_ALLOC");
	vm->ioas_id = ioas.out_ioas_id;
	/* Shared, so that a fork does not move it away from the device. */
	vm->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (vm->ram == MAP_FAILED) {
		vm->ram = NULL;
		return vm_fail(vm, false, "memory for the guest");
	}
	if (vm_ioas_map(vm, vm->ram, RAM_SIZE, RAM_BASE))
		return vm_fail(vm, false, "IOMMU_IOAS_MAP");

	if (vm_alloc_s2(vm, &vm->s2_id))
		return vm_fail(vm, errno == EOPNOTSUPP,
			       "no nesting parent: the SMMU has no stage 2?");
	if (vm_alloc_viommu(vm, vm->s2_id, &vm->viommu_id))
		return vm_fail(vm, errno == EOPNOTSUPP,
			       "no vIOMMU: the SMMU has neither CANWBS nor S2FWB?");
	if (vm_alloc_vdevice(vm, vm->vsid, &vm->vdevice_id))
		return vm_fail(vm, errno == EOPNOTSUPP,
			       "no vDEVICE: the device has several streams?");

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
	vm_write_cd(vm, vm->tables, ASID);

	if (vm_attach_stage1(vm))
		return vm_fail(vm, false, "cannot attach stage 1");
	if (vm->edu && edu_enable(vm))
		return vm_fail(vm, false, "%s does not behave like an edu",
			       dut->bdf);
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
	int err = ioctl(vm->iommufd, IOMMU_HWPT_INVALIDATE, arg) ? errno : 0;

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

/* What DMA read from A and B, by turns. */
struct sights {
	enum seen page[MAX_LOOKS][2];
};

/* Has the device read the end of page A and the beginning of page B. */
static inline int dma_look(struct vm *vm)
{
	if (edu_dma(vm, IOVA_B - 8, EDU_BUFFER + vm->looks * 16, 16,
		    EDU_DMA_RUN))
		return -1;
	vm->looks++;
	return 0;
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
	if (dma_look(vm) ||
	    edu_dma(vm, EDU_BUFFER, IOVA_OUT, vm->looks * 16,
		    EDU_DMA_RUN | EDU_DMA_TO_MEMORY))
		return -1;
	for (look = 0; look < vm->looks; look++) {
		for (i = 0; i < 2; i++) {
			uint64_t at = vm->out + look * 16 + i * 8;
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

/* ---- The kernel log ---- */

struct kmsg {
	int fd;
	/* Messages of errors that were injected are as they should be. */
	bool injecting;
};

static inline void kmsg_mark(struct kmsg *kmsg)
{
	kmsg->fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (kmsg->fd >= 0)
		lseek(kmsg->fd, 0, SEEK_END);
}

/* What the driver says of an illegal command that fault injection has made. */
#define KMSG_INJECTED \
	"illegal command, command 0x0000000000000000 0x0000000000000000, replaced by CMD_SYNC"

/* That, or that there were too many of these for the log. */
static inline bool kmsg_is_injected(const char *record)
{
	return strstr(record, KMSG_INJECTED) ||
	       (strstr(record, "arm-smmu-v3 cmdq: ") &&
		strstr(record, " callbacks suppressed"));
}

static inline bool kmsg_is_bad(const struct kmsg *kmsg, const char *record)
{
	static const char * const bad[] = {
		"WARNING:", "BUG:", "Oops", "Internal error", "refcount_t:",
		"UBSAN:", "KASAN:", "KCSAN:", "circular locking",
		"recursive locking", "inconsistent lock", "suspicious RCU",
		"Invalid wait context", "INFO: rcu", "rcu: INFO",
		"blocked for more than", "soft lockup", "hard LOCKUP",
		"page allocation failure",
	};
	/* KERN_WARNING and worse */
	bool warning = (strtoul(record, NULL, 10) & 7) <= 4;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(bad); i++)
		if (strstr(record, bad[i]))
			return true;
	if (kmsg->injecting && kmsg_is_injected(record))
		return false;
	return warning && strstr(record, "arm-smmu-v3");
}

/* The next record since the mark that should not be there. */
static inline bool kmsg_next_bad(struct kmsg *kmsg, char *buf, size_t size)
{
	ssize_t len;

	if (kmsg->fd < 0)
		return false;
	for (;;) {
		len = read(kmsg->fd, buf, size - 1);
		if (len < 0) {
			/* Records that were overwritten are not the last ones. */
			if (errno == EPIPE || errno == EINTR)
				continue;
			return false;
		}
		buf[len] = 0;
		/* What follows the text are properties. */
		*strchrnul(buf, '\n') = 0;
		if (kmsg_is_bad(kmsg, buf))
			return true;
	}
}

/* How many records there are since the mark that tell of an SMMU. */
static inline unsigned int kmsg_count_smmu(struct kmsg *kmsg)
{
	unsigned long long seq, next = 0;
	unsigned int count = 0;
	char buf[1024];
	ssize_t len;

	for (;;) {
		len = read(kmsg->fd, buf, sizeof(buf) - 1);
		if (len < 0 && (errno == EPIPE || errno == EINTR))
			continue;
		if (len < 0)
			return count;
		buf[len] = 0;
		*strchrnul(buf, '\n') = 0;
		if (sscanf(buf, "%*u,%llu,", &seq) != 1)
			continue;
		/* Those that were overwritten were too many in any case. */
		if (next && seq > next)
			count += seq - next;
		next = seq + 1;
		if (strstr(buf, "arm-smmu-v3"))
			count++;
	}
}

/* ---- Errors that the SMMU raises ---- */

#define DEBUGFS "/sys/kernel/debug"

/* As in Documentation/fault-injection/. */
enum fault_file {
	FAULT_PROBABILITY,
	FAULT_INTERVAL,
	FAULT_TIMES,
	FAULT_SPACE,
	FAULT_VERBOSE,
	FAULT_TASK_FILTER,
	FAULT_FILES,
};

/*
 * Which of the guests' commands are made illegal behind the back of the code
 * that has checked them: fail_guest_cmd.<SMMU>/ in debugfs.
 */
struct faults {
	/* The name of the SMMU that the device is behind. */
	char smmu[NAME_MAX + 1];
	char saved[FAULT_FILES][32];
	/* It was us who mounted debugfs. */
	bool mounted;
	/* Why there are none; empty if there are. */
	char unusable[800];
};

static inline void faults_path(const struct faults *faults,
			       enum fault_file file, char *path, size_t size)
{
	static const char * const names[] = {
		[FAULT_PROBABILITY] = "probability",
		[FAULT_INTERVAL] = "interval",
		[FAULT_TIMES] = "times",
		[FAULT_SPACE] = "space",
		[FAULT_VERBOSE] = "verbose",
		[FAULT_TASK_FILTER] = "task-filter",
	};

	snprintf(path, size, DEBUGFS "/fail_guest_cmd.%s/%s", faults->smmu,
		 names[file]);
}

static inline bool faults_write(const struct faults *faults,
				enum fault_file file, const char *text)
{
	char path[400];

	faults_path(faults, file, path, sizeof(path));
	return write_text(path, text);
}

static inline bool faults_set(const struct faults *faults,
			      enum fault_file file, long value)
{
	char text[32];

	snprintf(text, sizeof(text), "%ld", value);
	return faults_write(faults, file, text);
}

/* How many more there are to be. */
static inline long faults_left(const struct faults *faults)
{
	char path[400], text[32];

	faults_path(faults, FAULT_TIMES, path, sizeof(path));
	return read_text(path, text, sizeof(text)) ? atol(text) : -1;
}

/* The SMMU is the device that its IOMMU belongs to. */
static inline bool dut_smmu(const struct dut *dut, char *name, size_t size)
{
	char path[400], real[PATH_MAX];
	int i;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu", dut->bdf);
	if (!realpath(path, real))
		return false;
	/* .../<SMMU>/iommu/<IOMMU> */
	for (i = 0; i < 2; i++) {
		char *slash = strrchr(real, '/');

		if (!slash)
			return false;
		*slash = 0;
	}
	if (!strrchr(real, '/'))
		return false;
	snprintf(name, size, "%s", strrchr(real, '/') + 1);
	return *name;
}

static inline bool debugfs_is_mounted(void)
{
	struct statfs fs;

	return !statfs(DEBUGFS, &fs) && fs.f_type == DEBUGFS_MAGIC;
}

/* Finds out how it is set, for it to be left like that. */
static inline void faults_find(struct faults *faults, const struct dut *dut)
{
	char path[400];
	int i;

	memset(faults, 0, sizeof(*faults));
	if (*dut->unusable) {
		snprintf(faults->unusable, sizeof(faults->unusable), "%s",
			 dut->unusable);
		return;
	}
	if (!dut_smmu(dut, faults->smmu, sizeof(faults->smmu))) {
		snprintf(faults->unusable, sizeof(faults->unusable),
			 "%s is not behind an IOMMU", dut->bdf);
		return;
	}
	if (!debugfs_is_mounted()) {
		if (mount("debugfs", DEBUGFS, "debugfs", 0, NULL)) {
			snprintf(faults->unusable, sizeof(faults->unusable),
				 "debugfs cannot be mounted: %s",
				 strerror(errno));
			return;
		}
		faults->mounted = true;
	}
	for (i = 0; i < FAULT_FILES; i++) {
		faults_path(faults, i, path, sizeof(path));
		if (!read_text(path, faults->saved[i],
			       sizeof(faults->saved[i]))) {
			snprintf(faults->unusable, sizeof(faults->unusable),
				 "needs CONFIG_ARM_SMMU_V3_FAULT_INJECTION (%s: %s)",
				 path, strerror(errno));
			return;
		}
	}
}

/* Everything is set, but no command is chosen yet. */
static inline bool faults_begin(const struct faults *faults)
{
	return faults_set(faults, FAULT_TIMES, 0) &&
	       faults_set(faults, FAULT_SPACE, 0) &&
	       faults_set(faults, FAULT_INTERVAL, 1) &&
	       faults_set(faults, FAULT_VERBOSE, 0) &&
	       faults_write(faults, FAULT_TASK_FILTER, "N") &&
	       faults_set(faults, FAULT_PROBABILITY, 100);
}

/*
 * The next @k commands pass, and then @times fail. A command passes if there is
 * more space than it takes, which is 1.
 */
static inline bool faults_at(const struct faults *faults, unsigned int k,
			     long times)
{
	return faults_set(faults, FAULT_SPACE, k + 1L) &&
	       faults_set(faults, FAULT_TIMES, times);
}

static inline void faults_restore(const struct faults *faults)
{
	int i;

	if (*faults->unusable)
		return;
	for (i = 0; i < FAULT_FILES; i++)
		faults_write(faults, i, faults->saved[i]);
}

/* To be called once, at the very end. */
static inline void faults_release(struct faults *faults)
{
	faults_restore(faults);
	if (faults->mounted)
		umount2(DEBUGFS, MNT_DETACH);
	faults->mounted = false;
}

/* What the driver has counted, as far as it is of interest here. */
struct cmdq_stats {
	uint64_t commands;
	uint64_t ill;
	uint64_t serviced_inline;
	/* The sum of all that is not to be expected. */
	uint64_t unexpected;
};

static inline bool cmdq_stats_read(const struct faults *faults,
				   struct cmdq_stats *stats)
{
	static const char * const unexpected[] = {
		"abt", "atc_inv_sync", "other_errors", "replays", "refused",
		"timeouts",
	};
	unsigned int found = 0, i;
	unsigned long long value;
	char path[400], name[32];
	FILE *file;

	memset(stats, 0, sizeof(*stats));
	snprintf(path, sizeof(path), DEBUGFS "/%s/cmdq", faults->smmu);
	file = fopen(path, "r");
	if (!file)
		return false;
	while (fscanf(file, "%31s %llu", name, &value) == 2) {
		found++;
		if (!strcmp(name, "commands"))
			stats->commands = value;
		else if (!strcmp(name, "ill"))
			stats->ill = value;
		else if (!strcmp(name, "serviced_inline"))
			stats->serviced_inline = value;
		else
			found--;
		for (i = 0; i < ARRAY_SIZE(unexpected); i++) {
			if (strcmp(name, unexpected[i]))
				continue;
			stats->unexpected += value;
			found++;
		}
	}
	fclose(file);
	return found == 3 + ARRAY_SIZE(unexpected);
}

/* ---- The interrupt by which the SMMU tells of errors ---- */

#define GERROR_MAX 16

/* A machine has one for each of its SMMUs, and they all have the same name. */
struct gerror {
	unsigned int n;
	unsigned int irq[GERROR_MAX];
	char saved[GERROR_MAX][256];
};

static inline bool gerror_write(const struct gerror *gerror, unsigned int i,
				const char *cpus)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/irq/%u/smp_affinity_list",
		 gerror->irq[i]);
	return write_text(path, cpus);
}

static inline void gerror_find(struct gerror *gerror)
{
	char *line = NULL, path[64];
	size_t size = 0;
	unsigned int i;
	FILE *file;

	memset(gerror, 0, sizeof(*gerror));
	file = fopen("/proc/interrupts", "r");
	if (!file)
		return;
	while (gerror->n < GERROR_MAX && getline(&line, &size, file) > 0)
		if (strstr(line, "arm-smmu-v3-gerror") &&
		    sscanf(line, "%u:", &gerror->irq[gerror->n]) == 1)
			gerror->n++;
	free(line);
	fclose(file);
	for (i = 0; i < gerror->n; i++) {
		snprintf(path, sizeof(path), "/proc/irq/%u/smp_affinity_list",
			 gerror->irq[i]);
		if (!read_text(path, gerror->saved[i],
			       sizeof(gerror->saved[i])))
			gerror->n = 0;
	}
}

static inline bool gerror_route(const struct gerror *gerror, unsigned int cpu)
{
	unsigned int i;
	char cpus[16];

	snprintf(cpus, sizeof(cpus), "%u", cpu);
	for (i = 0; i < gerror->n; i++)
		if (!gerror_write(gerror, i, cpus))
			return false;
	return gerror->n;
}

static inline void gerror_restore(const struct gerror *gerror)
{
	unsigned int i;

	for (i = 0; i < gerror->n; i++)
		gerror_write(gerror, i, gerror->saved[i]);
}

#endif /* __SELFTEST_IOMMUFD_ARM_SMMUV3_H */
