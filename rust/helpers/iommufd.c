// SPDX-License-Identifier: GPL-2.0

#if IS_ENABLED(CONFIG_IOMMUFD_RUST)
#include "../../drivers/iommu/iommufd/iommufd_private.h"

__rust_helper void *rust_helper_dev_iommu_priv_get(struct device *dev)
{
	return dev_iommu_priv_get(dev);
}

__rust_helper void rust_helper_iommufd_put_object(struct iommufd_ctx *ictx,
						  struct iommufd_object *obj)
{
	iommufd_put_object(ictx, obj);
}

__rust_helper int rust_helper_iommufd_ucmd_respond(struct iommufd_ucmd *ucmd,
						   size_t cmd_len)
{
	return iommufd_ucmd_respond(ucmd, cmd_len);
}
#endif
