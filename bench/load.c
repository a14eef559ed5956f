/* Sends one request again and again, checks every response, and says in JSON how long they took.
 *
 *     load -p PORT -f FILE -c CONNECTIONS -n COUNT [-r RATE] [-b BYTES] [-h]
 *
 *     -f  the request, head and body, as it is sent
 *     -c  connections, which are kept open; each has one request at a time
 *     -n  requests in all
 *     -r  requests a second, at random moments (Poisson, the same in every run). What comes due
 *         while all connections are busy waits, and its wait counts. Without -r each connection
 *         sends its next request when it has its response.
 *     -b  the length that each response's body must have
 *     -h  hold: one request on each connection; when all responses have begun, prints a line and
 *         waits for the end of standard input
 *
 * An response that is not a whole 200, or anything else that goes wrong, ends it with status 1.
 */
#include "http.h"

#include <fcntl.h>
#include <math.h>

#define PATIENCE 60000000000 /* nanoseconds */

struct connection {
    int fd;
    size_t sent;
    int64_t due; /* when its request should have gone out */
    struct message response;
    uint64_t bytes, events;
    char last; /* byte of the body */
    bool open, busy;
};

static char *request;
static size_t request_length;
static struct sockaddr_in address;
static int poller;
static long connection_count, count, started, begun, finished; /* begun: the first bytes are there */
static double rate;
static long expected_bytes = -1;
static bool hold;
static struct connection *connections;
static int64_t *schedule, *latencies;
static long *idle, idle_count; /* a stack of connections */
static uint64_t total_bytes, total_events;

static void watch(struct connection *c, int operation, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};

    if (epoll_ctl(poller, operation, c->fd, &event))
        fail("epoll_ctl");
}

static void push(struct connection *c)
{
    while (c->sent < request_length) {
        ssize_t n = send(c->fd, request + c->sent, request_length - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            return;
        }
        if (n < 0)
            fail("send");
        c->sent += (size_t)n;
    }
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

static void start(struct connection *c)
{
    c->due = rate > 0 ? schedule[started] : now();
    started++;
    c->busy = true;
    c->sent = 0;
    c->bytes = c->events = 0;
    c->last = 0;
    message_reset(&c->response);
    if (c->open) {
        push(c);
        return;
    }
    c->open = true;
    c->fd = tcp_socket();
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        fail("connect");
    watch(c, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
}

static void check(struct connection *c)
{
    if (!c->response.framed)
        die("a response without a length");
    if (expected_bytes >= 0 && c->bytes != (uint64_t)expected_bytes)
        die("a response of another length than it must have");
}

static void finish(struct connection *c)
{
    check(c);
    latencies[finished++] = now() - c->due;
    total_bytes += c->bytes;
    total_events += c->events;
    c->busy = false;
    idle[idle_count++] = c - connections;
}

static void take_body(struct connection *c, const char *body, size_t length)
{
    c->bytes += length;
    for (size_t i = 0; i < length; i++) {
        c->events += body[i] == '\n' && c->last == '\n';
        c->last = body[i];
    }
}

static void receive(struct connection *c)
{
    static char data[262144];
    const char *body;
    size_t length;
    ssize_t n = recv(c->fd, data, sizeof data, 0), taken = 0;

    if (n < 0 && errno == EAGAIN)
        return;
    if (n < 0)
        fail("recv");
    if (!n)
        die("the other side closed");
    while (taken < n && c->busy) {
        ssize_t step = message_take(&c->response, data + taken, (size_t)(n - taken), &body, &length);
        if (step < 0)
            die("a response that is not HTTP/1.1");
        taken += step;
        if (c->response.state != HEAD && strncmp(c->response.head, "HTTP/1.1 200 ", 13)) {
            fprintf(stderr, "%s%.*s\n", c->response.head, (int)(n - taken), data + taken);
            die("a response that is not 200");
        }
        if (length && !c->bytes)
            begun++;
        take_body(c, body, length);
        if (c->response.state == DONE)
            finish(c);
    }
    if (taken < n)
        die("bytes after a response");
}

static bool may_start(void)
{
    if (started == count)
        return false;
    if (hold) /* not more at once than any listener's backlog takes */
        return started - begun < 64;
    return idle_count && (rate <= 0 || schedule[started] <= now());
}

static void run(void)
{
    struct epoll_event events[256];

    while ((hold ? begun : finished) < count) {
        while (may_start())
            start(&connections[idle[--idle_count]]);
        bool waits = rate > 0 && idle_count && started < count;
        int64_t due = waits ? schedule[started] : now() + PATIENCE;
        int n = wait_until(poller, events, 256, due);
        if (!n && !waits && now() >= due)
            die("nothing comes any more");
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT)
                push(c);
            if (events[i].events & ~(uint32_t)EPOLLOUT)
                receive(c);
        }
    }
}

static void read_request(const char *path)
{
    int fd = open(path, O_RDONLY);
    off_t size = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);

    if (size <= 0)
        fail(path);
    request = malloc((size_t)size);
    while (request_length < (size_t)size) {
        ssize_t n = pread(fd, request + request_length, (size_t)size - request_length,
                          (off_t)request_length);
        if (n <= 0)
            fail(path);
        request_length += (size_t)n;
    }
    close(fd);
}

static void plan(void)
{
    int64_t at = now() + 10000000;
    uint64_t random = 88172645463325252u; /* xorshift64, Marsaglia 2003 */

    for (long i = 0; i < count; i++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        at += (int64_t)(-log(((double)(random >> 11) + 1) / 9007199254740993.0) / rate * 1e9);
        schedule[i] = at;
    }
}

static int compare(const void *one, const void *other)
{
    int64_t a = *(const int64_t *)one, b = *(const int64_t *)other;

    return (a > b) - (a < b);
}

static double microseconds(double quantile)
{
    return (double)latencies[(long)((double)(count - 1) * quantile + 0.5)] / 1e3;
}

static void wait_for_the_end(void)
{
    char byte;

    printf("{\"open\": %ld}\n", begun);
    fflush(stdout);
    while (read(0, &byte, 1) > 0)
        ;
}

int main(int argument_count, char **arguments)
{
    const char *port = NULL, *path = NULL;
    int option;

    while ((option = getopt(argument_count, arguments, "p:f:c:n:r:b:h")) >= 0)
        switch (option) {
        case 'p': port = optarg; break;
        case 'f': path = optarg; break;
        case 'c': connection_count = atol(optarg); break;
        case 'n': count = atol(optarg); break;
        case 'r': rate = atof(optarg); break;
        case 'b': expected_bytes = atol(optarg); break;
        case 'h': hold = true; break;
        default: exit(2);
        }
    if (hold)
        count = connection_count;
    if (!port || !path || connection_count < 1 || count < 1)
        die("usage: load -p PORT -f FILE -c CONNECTIONS -n COUNT [-r RATE] [-b BYTES] [-h]");
    read_request(path);
    address = loopback(port);
    poller = epoll_create1(EPOLL_CLOEXEC);
    connections = calloc((size_t)connection_count, sizeof *connections);
    idle = calloc((size_t)connection_count, sizeof *idle);
    schedule = calloc((size_t)count, sizeof *schedule);
    latencies = calloc((size_t)count, sizeof *latencies);
    prctl(PR_SET_TIMERSLACK, 1);
    while (idle_count < connection_count) {
        idle[idle_count] = connection_count - 1 - idle_count;
        idle_count++;
    }
    if (rate > 0)
        plan();
    int64_t began = now();
    run();
    if (hold) {
        wait_for_the_end();
        return 0;
    }
    double seconds = (double)(now() - began) / 1e9;
    qsort(latencies, (size_t)count, sizeof *latencies, compare);
    printf("{\"requests\": %ld, \"bytes\": %llu, \"events\": %llu, \"seconds\": %.6f, "
           "\"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"max\": %.1f}\n",
           count, (unsigned long long)total_bytes, (unsigned long long)total_events, seconds,
           microseconds(0.5), microseconds(0.9), microseconds(0.99), microseconds(1));
    return 0;
}
