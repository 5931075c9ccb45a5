// SPDX-License-Identifier: GPL-2.0

#include <linux/debugfs.h>
#include <linux/fault-inject.h>

#ifdef CONFIG_FAULT_INJECTION
__rust_helper void rust_helper_fault_attr_init(struct fault_attr *attr)
{
	*attr = (struct fault_attr)FAULT_ATTR_INITIALIZER;
}

__rust_helper struct dentry *
rust_helper_fault_create_debugfs_attr(const char *name, struct dentry *parent,
				      struct fault_attr *attr)
{
	return fault_create_debugfs_attr(name, parent, attr);
}

__rust_helper void rust_helper_fault_remove_debugfs_attr(struct dentry *dir)
{
	debugfs_remove(dir);
}
#endif
