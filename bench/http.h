/* Reads HTTP/1.1 messages from whatever pieces arrive, and waits on the clock.
 *
 * Just what the two programs need: framing by Content-Length or chunked without extensions.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct message {
    enum { HEAD, BODY, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER, DONE } state;
    bool framed;        /* whether its head says where the body ends */
    uint64_t left;      /* bytes to come: of the body, or of this chunk */
    size_t head_length;
    size_t line_length; /* of this line of the trailer */
    char head[8192];    /* ends with a zero, once it is whole */
};

static void message_reset(struct message *m)
{
    m->state = HEAD;
    m->framed = false;
    m->left = m->head_length = m->line_length = 0;
}

static bool message_head(struct message *m)
{
    const char *length = strcasestr(m->head, "\r\ncontent-length:");
    const char *coding = strcasestr(m->head, "\r\ntransfer-encoding: chunked\r\n");

    m->framed = length || coding;
    if (length && coding)
        return false;
    if (length)
        m->left = strtoull(length + 17, NULL, 10);
    m->state = coding ? CHUNK_SIZE : m->left ? BODY : DONE;
    return true;
}

static bool message_byte(struct message *m, char c)
{
    const char *digits = "0123456789abcdef", *digit;

    switch (m->state) {
    case HEAD:
        if (m->head_length + 1 == sizeof m->head)
            return false;
        m->head[m->head_length++] = c;
        if (c == '\n' && m->head_length >= 4
            && !memcmp(m->head + m->head_length - 4, "\r\n\r\n", 4)) {
            m->head[m->head_length] = 0;
            return message_head(m);
        }
        return true;
    case CHUNK_SIZE:
        if (c == '\n')
            m->state = m->left ? CHUNK : TRAILER;
        else if (c != '\r') {
            digit = strchr(digits, c >= 'A' && c <= 'F' ? c + 32 : c);
            if (!c || !digit)
                return false;
            m->left = m->left * 16 + (uint64_t)(digit - digits);
        }
        return true;
    case CHUNK_END:
        if (c == '\n')
            m->state = CHUNK_SIZE;
        return true;
    default: /* TRAILER */
        if (c == '\n' && !m->line_length)
            m->state = DONE;
        m->line_length = c == '\n' ? 0 : m->line_length + (c != '\r');
        return true;
    }
}

/* Takes bytes from `data`, at most up to the end of the message or of a piece of its body.
 * Returns how many, or -1 if this is not HTTP; `*body` is the piece, of `*length` bytes. */
static ssize_t message_take(struct message *m, const char *data, size_t n,
                            const char **body, size_t *length)
{
    size_t taken = 0;

    *length = 0;
    while (taken < n && m->state != DONE) {
        if (m->state == BODY || m->state == CHUNK) {
            *body = data + taken;
            *length = n - taken < m->left ? n - taken : m->left;
            m->left -= *length;
            if (!m->left)
                m->state = m->state == BODY ? DONE : CHUNK_END;
            return (ssize_t)(taken + *length);
        }
        if (!message_byte(m, data[taken++]))
            return -1;
    }
    return (ssize_t)taken;
}

static int64_t now(void) /* in nanoseconds */
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* As epoll_wait, until the clock says `due`; for ever if that is negative. */
static int wait_until(int poller, struct epoll_event *events, int n, int64_t due)
{
    struct pollfd ready = {.fd = poller, .events = POLLIN};
    int64_t left = due - now();

    if (due < 0)
        return epoll_wait(poller, events, n, -1);
    if (left > 0) {
        struct timespec t = {.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
        ppoll(&ready, 1, &t, NULL);
    }
    return epoll_wait(poller, events, n, 0);
}

static void die(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void fail(const char *call) /* which has set errno */
{
    perror(call);
    exit(1);
}

static int tcp_socket(void)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        fail("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static struct sockaddr_in loopback(const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET};

    address.sin_port = htons((uint16_t)atoi(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}
