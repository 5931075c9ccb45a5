// SPDX-License-Identifier: GPL-2.0-only
/*
 * Where the array is and what it has in it: a bad entry at each position, holes,
 * memory of all kinds, memory that changes meanwhile.
 */
#include <pthread.h>
#include <sys/vfs.h>

#include "iommufd_arm_smmuv3_test.h"

/* ---- A bad entry at each position of an array ---- */

FIXTURE(position)
{
	struct vm vm;
	struct kmsg kmsg;
	struct arena arena;
};

FIXTURE_VARIANT(position)
{
	struct smmu_cmd (*bad)(void);
	unsigned int stride;
	int err;
	uint32_t code;
};

FIXTURE_VARIANT_ADD(position, opcode)
{
	.bad = bad_opcode,
	.stride = 16,
	.err = EIO,
	.code = ILL,
};

FIXTURE_VARIANT_ADD(position, reserved_bit)
{
	.bad = bad_reserved_bit,
	.stride = 16,
	.err = EIO,
	.code = ILL,
};

FIXTURE_VARIANT_ADD(position, vsid)
{
	.bad = bad_vsid,
	.stride = 16,
	.err = EIO,
	.code = ILL,
};

FIXTURE_VARIANT_ADD(position, range_with_stride)
{
	.bad = bad_range,
	.stride = 24,
	.err = EIO,
	.code = ILL,
};

/* The entry has something where there must be zeroes. */
FIXTURE_VARIANT_ADD(position, tail)
{
	.stride = 24,
	.err = E2BIG,
};

/* The entry cannot be read. */
FIXTURE_VARIANT_ADD(position, hole)
{
	.stride = 16,
	.err = EFAULT,
};

FIXTURE_SETUP(position)
{
	kmsg_mark(&self->kmsg);
	if (!setup_vm(_metadata, &self->vm, duts[0]))
		return;
	arena_init(_metadata, &self->arena, POSITIONS * 24);
}

FIXTURE_TEARDOWN(position)
{
	vm_close(&self->vm);
	check_kmsg(_metadata, &self->kmsg);
}

/* An array of @n with the bad entry at @k. */
static void *position_put(FIXTURE_DATA(position) * self,
			  const FIXTURE_VARIANT(position) * variant,
			  const struct smmu_cmd *cmds, unsigned int n,
			  unsigned int k)
{
	unsigned int stride = variant->stride;
	struct smmu_cmd copy[POSITIONS];
	uint8_t *entries;

	memcpy(copy, cmds, n * sizeof(*cmds));
	if (variant->bad)
		copy[k] = variant->bad();
	if (variant->err == EFAULT)
		return arena_put(&self->arena, copy, n, stride, k * stride);
	entries = arena_put(&self->arena, copy, n, stride, n * stride);
	if (variant->err == E2BIG)
		entries[k * stride + sizeof(*cmds) + k % 8] = 1;
	return entries;
}

/* Each k of each n. */
TEST_F_TIMEOUT(position, count, 4 * HANG_SECONDS)
{
	struct smmu_cmd cmds[POSITIONS];
	struct tally tally = {};
	unsigned int n, k;

	for (n = 1; n <= POSITIONS; n++) {
		fill_good(cmds, n);
		for (k = 0; k < n; k++)
			CHECK(&tally,
			      invalidate_array(&self->vm,
					       position_put(self, variant,
							    cmds, n, k),
					       variant->stride, n),
			      answer(variant->err, k, variant->code),
			      "n = %u, k = %u", n, k);
	}
	expect_tally(_metadata, &tally);
}

/* Entries 0 and k - 1 are said to be complete: they must be. */
TEST_F_TIMEOUT(position, dma, HANG_SECONDS)
{
	struct smmu_cmd cmds[POSITIONS];
	struct tally tally = {};
	char when[32];
	unsigned int i;

	if (!vm_has_dma(&self->vm))
		SKIP(return, NO_DMA);
	for (i = 0; i < ARRAY_SIZE(borders); i++) {
		unsigned int k = borders[i];

		fill_good(cmds, k);
		cmds[k] = cmd_elsewhere();
		ASSERT_EQ(0, dma_begin(&self->vm, CHANGE_PAGES));
		CHECK(&tally,
		      invalidate_array(&self->vm,
				       position_put(self, variant, cmds, k + 1,
						    k),
				       variant->stride, k + 1),
		      answer(variant->err, k, variant->code), "k = %u", k);
		snprintf(when, sizeof(when), "k = %u", k);
		expect_dma(_metadata, &self->vm, when, SEEN_NEW,
			   k > 1 ? SEEN_NEW : SEEN_OLD);
	}
	expect_tally(_metadata, &tally);
}

/*
 * Entry k and what follows is not promised, done or not: a caller that sends it
 * again without the bad one gets it done.
 */
TEST_F_TIMEOUT(position, resume_dma, HANG_SECONDS)
{
	static const unsigned int ks[] = { 1, 63, 64, 126 };
	struct smmu_cmd cmds[POSITIONS];
	struct sights sights;
	struct tally tally = {};
	unsigned int i, n;

	if (!vm_has_dma(&self->vm))
		SKIP(return, NO_DMA);
	for (i = 0; i < ARRAY_SIZE(ks); i++) {
		unsigned int k = ks[i];

		n = k + 3;
		fill_good(cmds, n);
		cmds[0] = cmd_elsewhere();
		cmds[k - 1] = cmd_tlbi_va(ASID, IOVA_A);
		ASSERT_EQ(0, dma_begin(&self->vm, CHANGE_PAGES));
		CHECK(&tally,
		      invalidate_array(&self->vm,
				       position_put(self, variant, cmds, n, k),
				       variant->stride, n),
		      answer(variant->err, k, variant->code), "k = %u", k);
		ASSERT_EQ(0, dma_look(&self->vm));
		CHECK(&tally,
		      invalidate(&self->vm, cmds + k + 1, n - k - 1),
		      answer(0, n - k - 1, 0), "from k = %u", k + 1);
		ASSERT_EQ(0, dma_end(&self->vm, &sights));
		expect_sight(_metadata, "before the invalidation",
			     sights.page[1], SEEN_OLD, SEEN_OLD);
		expect_sight(_metadata, "after the failure", sights.page[2],
			     SEEN_NEW, SEEN_EITHER);
		expect_sight(_metadata, "after the rest", sights.page[3],
			     SEEN_NEW, SEEN_NEW);
	}
	expect_tally(_metadata, &tally);
}

/* ---- Where the array is ---- */

FIXTURE(memory)
{
	struct vm vm;
	struct kmsg kmsg;
	struct smmu_cmd cmds[POSITIONS];
};

FIXTURE_SETUP(memory)
{
	kmsg_mark(&self->kmsg);
	if (!setup_vm(_metadata, &self->vm, duts[0]))
		return;
	fill_good(self->cmds, POSITIONS);
}

FIXTURE_TEARDOWN(memory)
{
	vm_close(&self->vm);
	check_kmsg(_metadata, &self->kmsg);
}

/* The array ends at the end of what can be read, or reaches beyond it. */
TEST_F_TIMEOUT(memory, hole_at_each_byte, HANG_SECONDS)
{
	static const unsigned int strides[] = { 16, 17, 24 };
	struct arena arena;
	struct tally tally = {};
	unsigned int s, i, byte;

	arena_init(_metadata, &arena, POSITIONS * 24);
	for (s = 0; s < ARRAY_SIZE(strides); s++) {
		unsigned int stride = strides[s];

		for (i = 0; i < ARRAY_SIZE(borders); i++) {
			unsigned int k = borders[i];

			for (byte = 0; byte < stride; byte++) {
				void *at = arena_put(&arena, self->cmds,
						     POSITIONS, stride,
						     k * stride + byte);

				CHECK(&tally,
				      invalidate_array(&self->vm, at, stride,
						       k + 1),
				      answer(EFAULT, k, 0),
				      "%u bytes of entry %u can be read", byte,
				      k);
				CHECK(&tally,
				      invalidate_array(&self->vm, at, stride,
						       k),
				      answer(0, k, 0),
				      "%u entries and %u bytes can be read", k,
				      byte);
			}
		}
	}
	expect_tally(_metadata, &tally);
	arena_free(&arena);
}

TEST_F_TIMEOUT(memory, hole_dma, HANG_SECONDS)
{
	static const unsigned int bytes[] = { 1, 8, 15 };
	struct arena arena;
	struct tally tally = {};
	unsigned int i;

	if (!vm_has_dma(&self->vm))
		SKIP(return, NO_DMA);
	arena_init(_metadata, &arena, POSITIONS * 16);
	for (i = 0; i < ARRAY_SIZE(bytes); i++) {
		unsigned int k = 64 + i;
		void *at;

		fill_good(self->cmds, k);
		self->cmds[k] = cmd_elsewhere();
		at = arena_put(&arena, self->cmds, k + 1, 16,
			       k * 16 + bytes[i]);
		ASSERT_EQ(0, dma_begin(&self->vm, CHANGE_PAGES));
		CHECK(&tally, invalidate_array(&self->vm, at, 16, k + 1),
		      answer(EFAULT, k, 0), "%u bytes of entry %u", bytes[i],
		      k);
		expect_dma(_metadata, &self->vm, "afterwards", SEEN_NEW,
			   SEEN_NEW);
	}
	expect_tally(_metadata, &tally);
	arena_free(&arena);
}

TEST_F(memory, protection)
{
	size_t page = page_size();
	struct tally tally = {};
	void *map;

	map = mmap(NULL, page, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, map);
	/* Nobody has touched it: it is a page of zeroes, and 0 no opcode. */
	CHECK(&tally, invalidate_array(&self->vm, map, 16, 100),
	      answer(EIO, 0, ILL), "never touched");
	memcpy(map, self->cmds, 100 * 16);
	ASSERT_EQ(0, mprotect(map, page, PROT_READ));
	CHECK(&tally, invalidate_array(&self->vm, map, 16, 100),
	      answer(0, 100, 0), "read-only");
	ASSERT_EQ(0, mprotect(map, page, PROT_NONE));
	CHECK(&tally, invalidate_array(&self->vm, map, 16, 100),
	      answer(EFAULT, 0, 0), "no access");
	expect_tally(_metadata, &tally);
	munmap(map, page);
}

TEST_F(memory, not_ours)
{
	static const uint64_t addrs[] = {
		1,
		1ULL << 52,
		0x7fffffffffffffff,
		0x8000000000000000,
		0xffff000000000000,
		0xffff800000000000,
		0xfffffffffffffff0,
		0xffffffffffffffff,
	};
	struct tally tally = {};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(addrs); i++) {
		struct iommu_hwpt_invalidate arg =
			invalidate_arg(&self->vm, NULL, 16, 65);

		arg.data_uptr = addrs[i];
		CHECK(&tally, invalidate_call(&self->vm, &arg),
		      answer(EFAULT, 0, 0), "%#llx",
		      (unsigned long long)addrs[i]);
		arg = invalidate_arg(&self->vm, NULL, 24, 65);
		arg.data_uptr = addrs[i];
		CHECK(&tally, invalidate_call(&self->vm, &arg),
		      answer(EFAULT, 0, 0), "%#llx, entries of 24 bytes",
		      (unsigned long long)addrs[i]);
	}
	expect_tally(_metadata, &tally);
}

/* No entry has to be aligned to anything, nor lie in a single page. */
TEST_F(memory, alignment)
{
	struct arena arena;
	struct tally tally = {};
	unsigned int offset;

	arena_init(_metadata, &arena, 2 * page_size());
	for (offset = 0; offset < 32; offset++) {
		uint8_t *at = arena_at(&arena, page_size() + 65 * 8 + offset);

		memcpy(at, self->cmds, 130 * 16);
		CHECK(&tally, invalidate_array(&self->vm, at, 16, 130),
		      answer(0, 130, 0), "offset %u", offset);
	}
	expect_tally(_metadata, &tally);
	arena_free(&arena);
}

TEST_F_TIMEOUT(memory, hugepage, HANG_SECONDS)
{
	size_t huge = read_meminfo("Hugepagesize") * 1024;
	struct tally tally = {};
	uint8_t *map, *at, *aligned;
	unsigned int k;

	if (!huge)
		SKIP(return, "the kernel has no hugepages");
	/* Room for one at an aligned address, and something behind it. */
	map = mmap(NULL, 3 * huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		   0);
	ASSERT_NE(MAP_FAILED, map);
	aligned = map + (huge - (uintptr_t)map % huge) % huge;
	if (mmap(aligned, huge, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_FIXED, -1,
		 0) == MAP_FAILED)
		SKIP(return, "no free hugepage of %zu kB: write to /proc/sys/vm/nr_hugepages",
		     huge / 1024);

	/* Across the middle, and up to the end. */
	memcpy(aligned + huge / 2 - 65 * 16, self->cmds, 130 * 16);
	CHECK(&tally,
	      invalidate_array(&self->vm, aligned + huge / 2 - 65 * 16, 16,
			       130),
	      answer(0, 130, 0), "in the middle");
	for (k = 1; k < 130; k++) {
		at = aligned + huge - k * 16;
		memcpy(at, self->cmds, k * 16);
		CHECK(&tally, invalidate_array(&self->vm, at, 16, k),
		      answer(0, k, 0), "up to the end");
		CHECK(&tally, invalidate_array(&self->vm, at, 16, 130),
		      answer(EFAULT, k, 0), "beyond the end");
	}
	expect_tally(_metadata, &tally);
	munmap(map, 3 * huge);
}

static void check_file(struct __test_metadata *_metadata, struct vm *vm,
		       int fd, int flags)
{
	size_t page = page_size();
	struct smmu_cmd cmds[POSITIONS];
	struct tally tally = {};
	unsigned int k = 65;
	uint8_t *map;

	/* Three pages: data up to the end of the first, a hole, nothing. */
	fill_good(cmds, POSITIONS);
	ASSERT_EQ(0, ftruncate(fd, 2 * page));
	ASSERT_EQ((ssize_t)(k * 16),
		  pwrite(fd, cmds, k * 16, page - k * 16));
	map = mmap(NULL, 3 * page, PROT_READ, flags, fd, 0);
	ASSERT_NE(MAP_FAILED, map);

	CHECK(&tally, invalidate_array(vm, map + page - k * 16, 16, k),
	      answer(0, k, 0), "up to the end of the data");
	CHECK(&tally, invalidate_array(vm, map + page - k * 16, 16, k + 10),
	      answer(EIO, k, ILL), "on into the hole");

	ASSERT_EQ((ssize_t)(k * 16),
		  pwrite(fd, cmds, k * 16, 2 * page - k * 16));
	CHECK(&tally,
	      invalidate_array(vm, map + 2 * page - k * 16, 16, k + 10),
	      answer(EFAULT, k, 0), "beyond the end of the file");
	ASSERT_EQ(0, ftruncate(fd, page));
	CHECK(&tally,
	      invalidate_array(vm, map + page - k * 16, 16, k + 10),
	      answer(EFAULT, k, 0), "the file is cut off");
	expect_tally(_metadata, &tally);
	munmap(map, 3 * page);
}

TEST_F(memory, file_shared)
{
	int fd = memfd_create("commands", 0);

	ASSERT_LE(0, fd);
	check_file(_metadata, &self->vm, fd, MAP_SHARED);
	close(fd);
}

TEST_F(memory, file_private)
{
	int fd = memfd_create("commands", 0);

	ASSERT_LE(0, fd);
	check_file(_metadata, &self->vm, fd, MAP_PRIVATE);
	close(fd);
}

struct toggler {
	pthread_t thread;
	struct smmu_cmd *at;
	struct smmu_cmd values[2];
	bool stop;
};

static void *toggle(void *arg)
{
	struct toggler *t = arg;
	int word = t->values[0].w[0] == t->values[1].w[0];
	unsigned int i = 0;

	/* They differ in one word, so that no third value ever is there. */
	while (!__atomic_load_n(&t->stop, __ATOMIC_RELAXED))
		__atomic_store_n(&t->at->w[word], t->values[i++ % 2].w[word],
				 __ATOMIC_RELAXED);
	return NULL;
}

/*
 * What is checked is what is issued: if an entry that another thread changes
 * all the time could slip through as the bad one, the SMMU would raise an error
 * that shows in the kernel log.
 */
TEST_F_TIMEOUT(memory, changed_meanwhile, 4 * HANG_SECONDS)
{
	const struct smmu_cmd values[][2] = {
		{ cmd_elsewhere(), bad_reserved_bit() },
		{ cmd_elsewhere(), cmd_set(cmd_elsewhere(), 7, 0, 0xff) },
		{ cmd_elsewhere(), cmd_set(cmd_elsewhere(), 7, 0, OP_SYNC) },
		{ cmd_elsewhere(), bad_range() },
		{ cmd_cfgi_cd(VSID), cmd_cfgi_cd(VSID_UNLINKED) },
		{ cmd_cfgi_cd(VSID), cmd_flip(cmd_cfgi_cd(VSID), BIT_SSEC) },
	};
	static const unsigned int ks[] = { 0, 62, 63, 126 };
	struct smmu_cmd *cmds = self->cmds;
	const unsigned int n = 127;
	unsigned int v, i;

	for (v = 0; v < ARRAY_SIZE(values); v++) {
		for (i = 0; i < ARRAY_SIZE(ks); i++) {
			unsigned int k = ks[i], done = 0, refused = 0;
			struct tally tally = {};
			struct toggler toggler = {};
			double start = now_seconds();

			fill_good(cmds, n);
			cmds[k] = values[v][0];
			toggler.at = &cmds[k];
			memcpy(toggler.values, values[v], sizeof(values[v]));
			ASSERT_EQ(0, pthread_create(&toggler.thread, NULL,
						    toggle, &toggler));
			while ((done < 300 || refused < 300) &&
			       now_seconds() - start < HANG_SECONDS / 8) {
				struct answer got =
					invalidate(&self->vm, cmds, n);

				done += !got.err;
				refused += got.err == EIO;
				CHECK(&tally, got,
				      got.err ? answer(EIO, k, ILL) :
						answer(0, n, 0),
				      "case %u, k = %u", v, k);
			}
			__atomic_store_n(&toggler.stop, true,
					 __ATOMIC_RELAXED);
			pthread_join(toggler.thread, NULL);
			expect_tally(_metadata, &tally);
			/* Or else nothing was changed while it was read. */
			EXPECT_NE(0, done);
			EXPECT_NE(0, refused);
		}
	}
	expect_usable(_metadata, &self->vm);
}

struct protector {
	pthread_t thread;
	void *page;
	bool stop;
};

static void *protect(void *arg)
{
	struct protector *p = arg;
	unsigned int i = 0;

	while (!__atomic_load_n(&p->stop, __ATOMIC_RELAXED)) {
		mprotect(p->page, page_size(),
			 i++ % 2 ? PROT_NONE : PROT_READ);
		sched_yield();
	}
	return NULL;
}

/* The second page of an array can be read at times, and then again not. */
TEST_F_TIMEOUT(memory, unreadable_meanwhile, 2 * HANG_SECONDS)
{
	static const unsigned int ks[] = { 1, 62, 63, 64, 126 };
	const unsigned int n = 190;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(ks); i++) {
		unsigned int k = ks[i], done = 0, refused = 0;
		struct protector protector = {};
		struct tally tally = {};
		struct arena arena;
		double start = now_seconds();
		uint8_t *at;

		arena_init(_metadata, &arena, 2 * page_size());
		at = arena_at(&arena, page_size() + k * 16);
		fill_good(self->cmds, n);
		memcpy(at, self->cmds, n * 16);
		protector.page = arena_at(&arena, page_size());
		ASSERT_EQ(0, pthread_create(&protector.thread, NULL, protect,
					    &protector));
		while ((done < 50 || refused < 50) &&
		       now_seconds() - start < HANG_SECONDS / 8) {
			struct answer got =
				invalidate_array(&self->vm, at, 16, n);
			bool later = got.num > k && got.num < n;

			done += !got.err;
			refused += got.err == EFAULT;
			/* It may have become so after some of its entries. */
			CHECK(&tally, got,
			      got.err ? answer(EFAULT, later ? got.num : k, 0) :
					answer(0, n, 0),
			      "k = %u", k);
		}
		__atomic_store_n(&protector.stop, true, __ATOMIC_RELAXED);
		pthread_join(protector.thread, NULL);
		arena_free(&arena);
		expect_tally(_metadata, &tally);
		EXPECT_NE(0, done);
		EXPECT_NE(0, refused);
	}
}

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
