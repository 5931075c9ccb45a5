// SPDX-License-Identifier: GPL-2.0-only
/*
 * QEMU's educational device. It copies up to a page between an IOVA and a buffer
 * of its own, which takes it 100 ms, so that a copy from IOVA to IOVA is two of
 * these. It does not tell whether it could read what it was to copy.
 */
#include <errno.h>
#include <stdint.h>
#include <unistd.h>

#include <linux/io.h>
#include <linux/pci_regs.h>

#include <libvfio.h>

#define PCI_VENDOR_ID_QEMU 0x1234
#define PCI_DEVICE_ID_EDU 0x11e8

#define EDU_ID 0x00
#define EDU_ID_MASK 0xff
#define EDU_ID_EDU 0xed
#define EDU_IRQ_RAISE 0x60
#define EDU_IRQ_ACK 0x64
#define EDU_DMA_SRC 0x80
#define EDU_DMA_DST 0x88
#define EDU_DMA_COUNT 0x90
#define EDU_DMA_CMD 0x98
#define EDU_DMA_CMD_RUN 0x1
#define EDU_DMA_CMD_TO_MEMORY 0x2

/* Where its buffer is, as its DMA sees it. The CPU cannot look into it. */
#define EDU_BUFFER 0x40000
#define EDU_BUFFER_SIZE 4096

#define EDU_POLL_US 1000
/* For a machine that is slow, or a bug. */
#define EDU_TIMEOUT_US 40000000

struct edu_state {
	iova_t dst;
	iova_t src;
	u64 size;
	u64 count;
};

static struct edu_state *to_edu_state(struct vfio_pci_device *device)
{
	return device->driver.region.vaddr;
}

static void *edu_reg(struct vfio_pci_device *device, unsigned int reg)
{
	return device->bars[0].vaddr + reg;
}

static int edu_probe(struct vfio_pci_device *device)
{
	if (!vfio_pci_device_match(device, PCI_VENDOR_ID_QEMU,
				   PCI_DEVICE_ID_EDU))
		return -EINVAL;
	return 0;
}

static void edu_init(struct vfio_pci_device *device)
{
	u32 id;

	VFIO_ASSERT_GE(device->driver.region.size, sizeof(struct edu_state));
	VFIO_ASSERT_NOT_NULL(device->bars[0].vaddr);

	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	id = readl(edu_reg(device, EDU_ID));
	VFIO_ASSERT_EQ(id & EDU_ID_MASK, EDU_ID_EDU);

	vfio_pci_msi_enable(device, 0, 1);

	device->driver.max_memcpy_size = EDU_BUFFER_SIZE;
	device->driver.max_memcpy_count = 8;
	device->driver.msi = 0;
}

static void edu_remove(struct vfio_pci_device *device)
{
	vfio_pci_msi_disable(device);
	vfio_pci_cmd_clear(device, PCI_COMMAND_MASTER);
}

static void edu_dma_start(struct vfio_pci_device *device, u64 src, u64 dst,
			  u64 size, u32 cmd)
{
	writeq(src, edu_reg(device, EDU_DMA_SRC));
	writeq(dst, edu_reg(device, EDU_DMA_DST));
	writeq(size, edu_reg(device, EDU_DMA_COUNT));
	writel(cmd | EDU_DMA_CMD_RUN, edu_reg(device, EDU_DMA_CMD));
}

static int edu_dma_wait(struct vfio_pci_device *device)
{
	unsigned int tries = EDU_TIMEOUT_US / EDU_POLL_US;

	while (readl(edu_reg(device, EDU_DMA_CMD)) & EDU_DMA_CMD_RUN) {
		if (!tries--)
			return -ETIMEDOUT;
		usleep(EDU_POLL_US);
	}
	return 0;
}

static void edu_memcpy_start(struct vfio_pci_device *device, iova_t src,
			     iova_t dst, u64 size, u64 count)
{
	struct edu_state *edu = to_edu_state(device);

	*edu = (struct edu_state){
		.src = src,
		.dst = dst,
		.size = size,
		.count = count,
	};
	edu_dma_start(device, src, EDU_BUFFER, size, 0);
}

static int edu_memcpy_wait(struct vfio_pci_device *device)
{
	struct edu_state *edu = to_edu_state(device);
	int ret;

	for (;;) {
		ret = edu_dma_wait(device);
		if (ret)
			return ret;
		edu_dma_start(device, EDU_BUFFER, edu->dst, edu->size,
			      EDU_DMA_CMD_TO_MEMORY);
		ret = edu_dma_wait(device);
		if (ret || !--edu->count)
			return ret;
		edu_dma_start(device, edu->src, EDU_BUFFER, edu->size, 0);
	}
}

static void edu_send_msi(struct vfio_pci_device *device)
{
	writel(1, edu_reg(device, EDU_IRQ_RAISE));
	writel(1, edu_reg(device, EDU_IRQ_ACK));
}

const struct vfio_pci_driver_ops edu_ops = {
	.name = "edu",
	.probe = edu_probe,
	.init = edu_init,
	.remove = edu_remove,
	.memcpy_start = edu_memcpy_start,
	.memcpy_wait = edu_memcpy_wait,
	.send_msi = edu_send_msi,
};
