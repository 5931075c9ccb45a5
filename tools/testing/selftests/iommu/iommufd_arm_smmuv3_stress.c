// SPDX-License-Identifier: GPL-2.0-only
/*
 * All at once, and VMs with errors beside others who share the queue with them.
 *
 *	IOMMUFD_SMMUV3_SECONDS	how long the stress test runs, 5 unless set
 *	IOMMUFD_SMMUV3_SEED	makes it repeat what it did in another run
 */
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "iommufd_arm_smmuv3_test.h"
#include "iommufd_arm_smmuv3_legal.h"

/* ---- All at once ---- */

#define STRESS_THREADS 8
#define STRESS_MAX 300

struct stress {
	struct vm *vm;
	bool stop;
	uint64_t seed;
};

struct stress_thread {
	struct stress *stress;
	struct arena arena;
	pthread_t thread;
	uint64_t rng;
	unsigned long calls;
	unsigned long refused;
	unsigned long wrong;
	/* The first answer that was wrong. */
	unsigned long nth;
	unsigned int n;
	struct answer got;
	struct answer want;
};

struct stress_mapper {
	struct stress *stress;
	pthread_t thread;
	uint8_t *memory;
	uint64_t rng;
	unsigned long rounds;
	int err;
};

static struct answer stress_array(struct stress_thread *t, void **array,
				  unsigned int *stride, unsigned int *n)
{
	static const unsigned int strides[] = { 16, 16, 16, 17, 24, 64 };
	const struct vm *vm = t->stress->vm;
	struct smmu_cmd cmds[STRESS_MAX];
	uint64_t *rng = &t->rng;
	uint8_t *entries;
	struct answer want;
	unsigned int i, k;

	*n = 1 + rng_below(rng, rng_below(rng, 2) ? STRESS_MAX : 8);
	*stride = strides[rng_below(rng, ARRAY_SIZE(strides))];
	want = answer(0, *n, 0);
	for (i = 0; i < *n; i++)
		cmds[i] = rng_cmd(rng, vm);

	if (rng_below(rng, 2)) {
		*array = arena_put(&t->arena, cmds, *n, *stride, *n * *stride);
		return want;
	}
	for (i = rng_below(rng, 3); i; i--) {
		k = rng_below(rng, *n);
		cmds[k] = rng_bad_cmd(rng, vm);
		if (k < want.num)
			want = answer(EIO, k, ILL);
	}
	if (!rng_below(rng, 4)) {
		unsigned int byte = rng_below(rng, *stride);

		k = rng_below(rng, *n);
		/* Where memory ends, even the opcode is missing. */
		*array = arena_put(&t->arena, cmds, *n, *stride,
				   k * *stride + byte);
		return k <= want.num && k < *n ? answer(EFAULT, k, 0) : want;
	}
	entries = arena_put(&t->arena, cmds, *n, *stride, *n * *stride);
	*array = entries;
	if (*stride > 16 && !rng_below(rng, 4)) {
		k = rng_below(rng, *n);
		entries[k * *stride + 16 + rng_below(rng, *stride - 16)] = 1;
		/* An entry that cannot be read right is not looked at. */
		if (k <= want.num)
			want = answer(E2BIG, k, 0);
	}
	return want;
}

static void *stress_run(void *arg)
{
	struct stress_thread *t = arg;

	while (!__atomic_load_n(&t->stress->stop, __ATOMIC_RELAXED)) {
		unsigned int stride, n;
		struct answer got, want;
		void *array;

		want = stress_array(t, &array, &stride, &n);
		got = invalidate_array(t->stress->vm, array, stride, n);
		if (got.err != want.err || got.num != want.num ||
		    got.code != want.code) {
			if (!t->wrong++) {
				t->nth = t->calls;
				t->n = n;
				t->got = got;
				t->want = want;
			}
		}
		t->calls++;
		t->refused += !!want.err;
	}
	return NULL;
}

#define STRESS_IOVA 0x80000000ULL
#define STRESS_MEMORY (4UL << 20)

/* What the host does through the same command queue: stage 2 changes. */
static void *stress_map(void *arg)
{
	struct stress_mapper *m = arg;

	while (!__atomic_load_n(&m->stress->stop, __ATOMIC_RELAXED)) {
		unsigned int pages = STRESS_MEMORY / page_size();
		struct iommu *iommu = m->stress->vm->iommu;
		struct dma_region region = {
			.vaddr = m->memory,
			.size = (1 + rng_below(&m->rng, pages)) * page_size(),
			.iova = STRESS_IOVA +
				rng_below(&m->rng, pages) * page_size(),
		};

		m->err = __iommu_map(iommu, &region);
		if (!m->err)
			m->err = __iommu_unmap(iommu, &region, NULL);
		if (m->err)
			break;
		m->rounds++;
	}
	return NULL;
}

FIXTURE(stress)
{
	struct vm vm;
	struct kmsg kmsg;
};

FIXTURE_SETUP(stress)
{
	kmsg_mark(&self->kmsg);
	setup_vm(_metadata, &self->vm, duts[0]);
}

FIXTURE_TEARDOWN(stress)
{
	vm_close(&self->vm);
	check_kmsg(_metadata, &self->kmsg);
}

/* What is complete is so under load as well. */
static void stress_dma(struct __test_metadata *_metadata, struct vm *vm,
		       struct tally *tally, unsigned long nth)
{
	struct smmu_cmd cmds[POSITIONS];
	unsigned int k = 2 + nth * 7 % (POSITIONS - 3);
	bool bad = nth % 2;
	struct sights sights;

	fill_good(cmds, k);
	cmds[k] = bad_opcode();
	ASSERT_EQ(0, dma_begin(vm, CHANGE_PAGES));
	CHECK(tally, invalidate(vm, cmds, k + bad),
	      bad ? answer(EIO, k, ILL) : answer(0, k, 0), "k = %u", k);
	ASSERT_EQ(0, dma_end(vm, &sights));
	expect_sight(_metadata, "before the change", sights.page[0], SEEN_OLD,
		     SEEN_OLD);
	/* Some other thread may have invalidated it already. */
	expect_sight(_metadata, "before the invalidation", sights.page[1],
		     SEEN_EITHER, SEEN_EITHER);
	expect_sight(_metadata, "afterwards", sights.page[2], SEEN_NEW,
		     SEEN_NEW);
}

TEST_F_TIMEOUT(stress, random, 3600)
{
	double seconds = env_number("IOMMUFD_SMMUV3_SECONDS", 5);
	struct stress_thread threads[STRESS_THREADS] = {};
	struct stress stress = { .vm = &self->vm };
	struct stress_mapper mapper = { .stress = &stress };
	struct tally tally = {};
	unsigned long calls = 0, refused = 0, wrong = 0, looks = 0;
	unsigned int i;
	double start;

	stress.seed = env_number("IOMMUFD_SMMUV3_SEED",
				 random_seed());
	TH_LOG("IOMMUFD_SMMUV3_SEED=%#llx", (unsigned long long)stress.seed);

	mapper.memory = mmap(NULL, STRESS_MEMORY, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, mapper.memory);
	for (i = 0; i < STRESS_THREADS; i++) {
		arena_init(_metadata, &threads[i].arena, STRESS_MAX * 64);
		threads[i].stress = &stress;
	}
	for (i = 0; i < STRESS_THREADS + 1; i++) {
		/* Neighbours must not begin alike, and none with 0. */
		uint64_t rng = (stress.seed + i) * 0x9e3779b97f4a7c15ULL | 1;

		if (i < STRESS_THREADS)
			threads[i].rng = rng;
		else
			mapper.rng = rng;
	}
	for (i = 0; i < STRESS_THREADS; i++)
		ASSERT_EQ(0, pthread_create(&threads[i].thread, NULL,
					    stress_run, &threads[i]));
	ASSERT_EQ(0, pthread_create(&mapper.thread, NULL, stress_map,
				    &mapper));
	start = now_seconds();
	while (now_seconds() - start < seconds) {
		if (vm_has_dma(&self->vm))
			stress_dma(_metadata, &self->vm, &tally, looks++);
		else
			sleep_seconds(0.1);
	}
	__atomic_store_n(&stress.stop, true, __ATOMIC_RELAXED);

	for (i = 0; i < STRESS_THREADS; i++) {
		struct stress_thread *t = &threads[i];

		pthread_join(t->thread, NULL);
		calls += t->calls;
		refused += t->refused;
		wrong += t->wrong;
		if (t->wrong) {
			TH_LOG("thread %u: %lu of %lu answers are wrong", i,
			       t->wrong, t->calls);
			TH_LOG("call %lu, n = %u: got (%s, %u, code %u), want (%s, %u, code %u)",
			       t->nth, t->n, err_name(t->got.err), t->got.num,
			       t->got.code, err_name(t->want.err), t->want.num,
			       t->want.code);
		}
		/* None must starve. */
		EXPECT_NE(0, t->calls);
	}
	pthread_join(mapper.thread, NULL);
	TH_LOG("%lu calls, %lu of them bad; %lu rounds of map and unmap, %lu of DMA",
	       calls, refused, mapper.rounds, looks);
	EXPECT_EQ(0, wrong);
	if (vm_has_dma(&self->vm))
		expect_tally(_metadata, &tally);
	EXPECT_EQ(0, mapper.err);
	EXPECT_NE(0, mapper.rounds);
	EXPECT_NE(0, refused);
	EXPECT_LT(refused, calls);
	expect_usable(_metadata, &self->vm);
}

/* ---- A VM with errors, and others who share the queue with it ---- */

#define NEIGHBOURS 3

/* Shared by a process that makes calls and one that watches. */
struct neighbour {
	struct vm vm;
	/* Where it has to run, or -1. */
	int cpu;
	enum {
		INNOCENT,
		/* An error is injected into some of its arrays. */
		GUILTY,
		/* All of an array fails, or nothing. */
		BY_TURNS,
	} role;
	unsigned long calls;
	unsigned long errors;
	unsigned long wrong;
	/* The last answer that was wrong. */
	unsigned int n;
	struct answer got;
	struct answer want;
	double longest;
	bool broken;
};

struct neighbourhood {
	bool stop;
	struct neighbour neighbours[NEIGHBOURS];
};

FIXTURE(neighbours)
{
	struct vm vm[2];
	/* Of another VM, if its device is behind the same SMMU. */
	bool two_devices;
	struct kmsg kmsg;
	struct cmdq_stats before;
	struct neighbourhood *hood;
	struct stress stress[2];
	struct stress_mapper mapper[2];
	uint64_t seed;
};

FIXTURE_VARIANT(neighbours)
{
	enum { FREELY, APART, TOGETHER } place;
	/* Each of them is the guilty one now and then, several at a time. */
	bool by_turns;
	/* The interrupt of errors goes to the CPU of the nth neighbour. */
	bool routed;
	unsigned int nth;
};

FIXTURE_VARIANT_ADD(neighbours, free) {};

FIXTURE_VARIANT_ADD(neighbours, apart) { .place = APART, };

FIXTURE_VARIANT_ADD(neighbours, together) { .place = TOGETHER, };

FIXTURE_VARIANT_ADD(neighbours, by_turns) { .by_turns = true, };

FIXTURE_VARIANT_ADD(neighbours, by_turns_apart)
{
	.by_turns = true,
	.place = APART,
};

FIXTURE_VARIANT_ADD(neighbours, interrupt_to_guilty)
{
	.place = APART,
	.routed = true,
};

FIXTURE_VARIANT_ADD(neighbours, interrupt_to_innocent)
{
	.place = APART,
	.routed = true,
	.nth = 1,
};

/* A vIOMMU needs no device of its own, unless it is for CFGI and ATC_INV. */
static void setup_second_viommu(struct __test_metadata *_metadata,
				FIXTURE_DATA(neighbours) * self)
{
	self->vm[1] = self->vm[0];
	ASSERT_EQ(0, vm_alloc_s2(&self->vm[0], &self->vm[1].s2_id));
	ASSERT_EQ(0, vm_alloc_viommu(&self->vm[0], self->vm[1].s2_id,
				     &self->vm[1].viommu_id));
}

FIXTURE_SETUP(neighbours)
{
	int i;

	if (variant->routed && !gerror.n)
		SKIP(return, "no interrupt arm-smmu-v3-gerror whose CPUs can be chosen");
	if (!setup_vm(_metadata, &self->vm[0], duts[0]) ||
	    !setup_faults(_metadata, &self->kmsg, &self->before))
		return;
	self->two_devices = duts[1];
	if (self->two_devices) {
		ASSERT_EQ(0, vm_open(&self->vm[1], duts[1]))
		{
			TH_LOG("%s", self->vm[1].error);
		}
		/* To see the host's own domains, too. */
		ASSERT_EQ(0, vm_attach(&self->vm[1], self->vm[1].s2_id));
	} else {
		TH_LOG("the same device for both");
		setup_second_viommu(_metadata, self);
	}

	self->hood = mmap(NULL, sizeof(*self->hood), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->hood);
	self->seed = env_number("IOMMUFD_SMMUV3_SEED", random_seed());
	TH_LOG("IOMMUFD_SMMUV3_SEED=%#llx", (unsigned long long)self->seed);
	for (i = 0; i < NEIGHBOURS; i++) {
		struct neighbour *one = &self->hood->neighbours[i];

		/* One in the same VM as the guilty one, one in the other. */
		one->vm = self->vm[i == 1];
		one->role = i ? INNOCENT : GUILTY;
		if (variant->by_turns)
			one->role = BY_TURNS;
		one->cpu = -1;
		if (variant->place != FREELY)
			one->cpu = nth_cpu(variant->place == APART ? i : 0);
	}
	for (i = 0; i < 2; i++) {
		self->stress[i].vm = &self->vm[i];
		self->mapper[i].stress = &self->stress[i];
		self->mapper[i].rng = (self->seed + i) | 1;
		self->mapper[i].memory = mmap(NULL, STRESS_MEMORY,
					      PROT_READ | PROT_WRITE,
					      MAP_SHARED | MAP_ANONYMOUS, -1,
					      0);
		ASSERT_NE(MAP_FAILED, self->mapper[i].memory);
	}
	ASSERT_TRUE(faults_write(&faults, FAULT_TASK_FILTER, "Y"));
	if (variant->routed)
		ASSERT_TRUE(gerror_route(&gerror, nth_cpu(variant->nth)));
}

FIXTURE_TEARDOWN(neighbours)
{
	gerror_restore(&gerror);
	faults_restore(&faults);
	if (self->two_devices)
		vm_close(&self->vm[1]);
	vm_close(&self->vm[0]);
	check_kmsg(_metadata, &self->kmsg);
}

static void neighbour_call(struct neighbour *one, uint64_t *rng,
			   const struct smmu_cmd *cmds)
{
	/* The queue stops at each error, so that too many are too slow. */
	unsigned int most = one->role == BY_TURNS ? 8 : POSITIONS;
	unsigned int n = 1 + rng_below(rng, most);
	struct answer want = answer(0, n, 0), got;
	double start;

	if (one->role == GUILTY && rng_below(rng, 4)) {
		want = answer(EIO, rng_below(rng, n), ILL);
		if (!faults_at(&faults, want.num, 1))
			one->broken = true;
	}
	if (one->role == BY_TURNS) {
		bool guilty = rng_below(rng, 2);

		if (guilty)
			want = answer(EIO, 0, ILL);
		if (!make_it_fail(guilty))
			one->broken = true;
	}
	start = now_seconds();
	got = invalidate(&one->vm, cmds, n);
	start = now_seconds() - start;
	if (one->longest < start)
		one->longest = start;
	if (got.err != want.err || got.num != want.num ||
	    got.code != want.code) {
		one->wrong++;
		one->n = n;
		one->got = got;
		one->want = want;
	}
	one->errors += !!want.err;
	one->calls++;
}

static void neighbour_run(struct neighbourhood *hood, struct neighbour *one,
			  uint64_t rng)
{
	struct smmu_cmd cmds[POSITIONS];

	/* Whatever becomes of the test, nobody stays behind. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) ||
	    (one->cpu >= 0 && !pin_to(one->cpu)) ||
	    (one->role == GUILTY && !make_it_fail(true)))
		one->broken = true;
	fill_good(cmds, POSITIONS);
	while (!one->broken &&
	       !__atomic_load_n(&hood->stop, __ATOMIC_RELAXED))
		neighbour_call(one, &rng, cmds);
}

static void expect_neighbour(struct __test_metadata *_metadata,
			     const struct neighbour *one, unsigned int i)
{
	TH_LOG("process %u, CPU %d: %lu calls, %lu errors, %lu wrong answers, at most %.6f s",
	       i, one->cpu, one->calls, one->errors, one->wrong, one->longest);
	if (one->wrong)
		TH_LOG("n = %u: got (%s, %u, code %u), want (%s, %u, code %u)",
		       one->n, err_name(one->got.err), one->got.num,
		       one->got.code, err_name(one->want.err), one->want.num,
		       one->want.code);
	EXPECT_FALSE(one->broken);
	EXPECT_NE(0, one->calls);
	EXPECT_EQ(0, one->wrong);
	EXPECT_EQ(one->role != INNOCENT, !!one->errors);
}

/* What the host does makes it use the queue, or else it is no neighbour. */
static void expect_host_traffic(struct __test_metadata *_metadata,
				struct vm *vm, void *memory)
{
	struct cmdq_stats before, after;
	struct dma_region region = {
		.vaddr = memory,
		.iova = STRESS_IOVA,
		.size = page_size(),
	};

	ASSERT_TRUE(cmdq_stats_read(&faults, &before));
	iommu_map(vm->iommu, &region);
	iommu_unmap(vm->iommu, &region);
	ASSERT_TRUE(cmdq_stats_read(&faults, &after));
	EXPECT_LT(before.commands, after.commands);
}

TEST_F_TIMEOUT(neighbours, undisturbed, HANG_SECONDS)
{
	const unsigned int mappers = self->two_devices ? 2 : 1;
	struct neighbourhood *hood = self->hood;
	const long many = INT_MAX;
	pid_t pids[NEIGHBOURS];
	uint64_t errors = 0;
	unsigned int i;
	int status;

	for (i = 0; i < mappers; i++)
		expect_host_traffic(_metadata, &self->vm[i],
				    self->mapper[i].memory);
	if (variant->by_turns)
		ASSERT_TRUE(faults_at(&faults, 0, many));
	for (i = 0; i < NEIGHBOURS; i++) {
		/* Neighbours must not begin alike, and none with 0. */
		uint64_t rng = (self->seed + i) * 0x9e3779b97f4a7c15ULL | 1;

		pids[i] = fork();
		ASSERT_LE(0, pids[i]);
		if (!pids[i]) {
			neighbour_run(hood, &hood->neighbours[i], rng);
			_exit(0);
		}
	}
	/* The mappers stay where this thread is now. */
	if (variant->place != FREELY)
		ASSERT_TRUE(pin_to(nth_cpu(variant->place == APART ? NEIGHBOURS :
								     0)));
	for (i = 0; i < mappers; i++)
		ASSERT_EQ(0, pthread_create(&self->mapper[i].thread, NULL,
					    stress_map, &self->mapper[i]));
	sleep_seconds(1.5);
	__atomic_store_n(&hood->stop, true, __ATOMIC_RELAXED);
	for (i = 0; i < mappers; i++)
		__atomic_store_n(&self->stress[i].stop, true, __ATOMIC_RELAXED);

	for (i = 0; i < NEIGHBOURS; i++) {
		ASSERT_EQ(pids[i], waitpid(pids[i], &status, 0));
		EXPECT_EQ(0, status);
		expect_neighbour(_metadata, &hood->neighbours[i], i);
		errors += hood->neighbours[i].errors;
	}
	for (i = 0; i < mappers; i++) {
		pthread_join(self->mapper[i].thread, NULL);
		TH_LOG("host: %lu rounds of map and unmap",
		       self->mapper[i].rounds);
		EXPECT_EQ(0, self->mapper[i].err);
		EXPECT_NE(0, self->mapper[i].rounds);
	}
	if (variant->by_turns)
		errors = many - faults_left(&faults);
	TH_LOG("%llu errors", (unsigned long long)errors);
	expect_errors(_metadata, &self->before, errors);
	expect_usable(_metadata, &self->vm[0]);
}

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
