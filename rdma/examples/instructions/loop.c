/*
 * The posting and polling loop that ../instructions/main.rs compares ours with, as a careful programmer
 * writes it in C on libibverbs' header, for the same service:
 *
 * - a slot for each outstanding request remembers its buffer, and its completion hands the buffer back,
 *   with those of all unsignalled requests before it;
 * - room is checked before a request is posted, so the send queue never overruns;
 * - the part to send must lie inside its buffer; the buffer carries the key of its region;
 * - a request is signalled when the caller asks for it, and once in half a queue in any case;
 * - a batch is one doorbell, and is taken back as a whole when the provider refuses it;
 * - the status of each completion is looked at.
 *
 * What it does not do and ours does: look the region up by the buffer's address and refuse buffers in no
 * region, refuse completions of requests that are not outstanding or of another queue pair, send short
 * messages inline when told to.
 *
 * Compiled with `cc -O2 -shared -fPIC` and opened by the program, which hands it a queue pair of the same
 * provider.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <infiniband/verbs.h>

#define POLLED_AT_ONCE 32

struct buffer {
	char *start;
	uint32_t len;
	uint32_t lkey;
};

struct sender {
	struct ibv_qp_ex *qp;
	struct ibv_cq *cq;
	struct buffer **slots;
	uint32_t mask;
	uint32_t depth;
	uint32_t head;
	uint32_t tail;
	uint32_t unsignaled;
	uint32_t signal_every;
	struct buffer **free;
	uint32_t free_count;
	uint64_t remote;
	uint32_t rkey;
};

static inline int post_write(struct sender *s, struct buffer *buffer, uint32_t offset, uint32_t len,
			     uint64_t remote, uint32_t rkey, unsigned int flags)
{
	if (s->tail - s->head >= s->depth)
		return ENOMEM;
	if ((uint64_t)offset + len > buffer->len)
		return EINVAL;
	if (++s->unsignaled >= s->signal_every)
		flags |= IBV_SEND_SIGNALED;
	if (flags & IBV_SEND_SIGNALED)
		s->unsignaled = 0;
	s->slots[s->tail & s->mask] = buffer;
	s->qp->wr_id = s->tail;
	s->qp->wr_flags = flags;
	ibv_wr_rdma_write(s->qp, rkey, remote);
	ibv_wr_set_sge(s->qp, buffer->lkey, (uintptr_t)buffer->start + offset, len);
	s->tail++;
	return 0;
}

static void take_back(struct sender *s, uint32_t from)
{
	while (s->tail != from) {
		s->tail--;
		s->free[s->free_count++] = s->slots[s->tail & s->mask];
	}
}

/* Posts batches of `batch` writes of `len` bytes until `count` are posted. */
__attribute__((noinline)) int c_post(struct sender *s, uint32_t count, uint32_t batch, uint32_t len,
				     unsigned int flags)
{
	while (count > 0) {
		uint32_t from = s->tail;
		uint32_t now = count < batch ? count : batch;
		int err = 0;

		ibv_wr_start(s->qp);
		for (uint32_t i = 0; i < now; i++) {
			struct buffer *buffer;

			if (s->free_count == 0) {
				err = ENOBUFS;
				break;
			}
			buffer = s->free[--s->free_count];
			err = post_write(s, buffer, 0, len, s->remote, s->rkey, flags);
			if (err) {
				s->free[s->free_count++] = buffer;
				break;
			}
		}
		if (err) {
			ibv_wr_abort(s->qp);
			take_back(s, from);
			return err;
		}
		err = ibv_wr_complete(s->qp);
		if (err) {
			take_back(s, from);
			return err;
		}
		count -= now;
	}
	return 0;
}

/* Polls until there is nothing, handing all buffers of done requests back; how many there were. */
__attribute__((noinline)) int c_poll(struct sender *s)
{
	struct ibv_wc done[POLLED_AT_ONCE];
	int buffers = 0;

	for (;;) {
		int count = ibv_poll_cq(s->cq, POLLED_AT_ONCE, done);

		if (count < 0)
			return count;
		if (count == 0)
			return buffers;
		for (int i = 0; i < count; i++) {
			uint32_t end = (uint32_t)done[i].wr_id + 1;

			if (done[i].status != IBV_WC_SUCCESS)
				return -EIO;
			while (s->head != end) {
				s->free[s->free_count++] = s->slots[s->head & s->mask];
				s->head++;
				buffers++;
			}
		}
	}
}

struct sender *c_sender(struct ibv_qp_ex *qp, struct ibv_cq *cq, uint32_t depth, char *memory,
			uint32_t buffer_len, uint32_t lkey, uint64_t remote, uint32_t rkey)
{
	struct sender *s = calloc(1, sizeof(*s));
	struct buffer *buffers = calloc(depth, sizeof(*buffers));
	uint32_t slots = 1;

	while (slots < depth)
		slots *= 2;
	if (!s || !buffers)
		abort();
	s->slots = calloc(slots, sizeof(*s->slots));
	s->free = calloc(depth, sizeof(*s->free));
	if (!s->slots || !s->free)
		abort();
	s->qp = qp;
	s->cq = cq;
	s->mask = slots - 1;
	s->depth = depth;
	s->signal_every = depth / 2;
	s->remote = remote;
	s->rkey = rkey;
	for (uint32_t i = 0; i < depth; i++) {
		buffers[i].start = memory + (size_t)i * buffer_len;
		buffers[i].len = buffer_len;
		buffers[i].lkey = lkey;
		s->free[s->free_count++] = &buffers[i];
	}
	return s;
}
