/* Answers as Claude's API does, for as little CPU as possible.
 *
 *     mock PORT       0 takes a free one; the port is printed
 *
 * A request with "stream":true gets events; words in its prompt say which, so that they survive
 * whatever a proxy does to paths and headers:
 *
 *     events=N        so many text deltas, besides the five or six events around them
 *     rate=R          so many of these a second; without it as fast as they are taken
 *     idle            after them silence, until the client leaves
 *
 * Any other request gets a message of about 800 bytes, when all of it has been read. Each message
 * has an id of its own.
 */
#include "http.h"

#define BURST 32768 /* bytes of events that are made ready at a time */

struct connection {
    int fd;
    struct message request;
    size_t prompt_length;
    char prompt[4096]; /* the beginning of the body */
    char *out;         /* of which `sent` of `out_length` bytes have gone out */
    size_t sent, out_length;
    bool streaming, idle;
    long events;    /* still to come */
    int64_t period; /* between two, in nanoseconds; 0 for none */
    int64_t due;    /* when the next one is */
    struct connection *next, *previous; /* among those with a period */
};

static int poller;
static struct connection *paced;
static double phase;
static unsigned long messages;

#define HEADERS \
    "HTTP/1.1 200 OK\r\n" \
    "Date: Tue, 24 Nov 2026 10:00:00 GMT\r\n" \
    "Content-Type: %s\r\n" \
    "Connection: keep-alive\r\n" \
    "anthropic-ratelimit-requests-limit: 4000\r\n" \
    "anthropic-ratelimit-requests-remaining: 3999\r\n" \
    "anthropic-ratelimit-requests-reset: 2026-11-24T10:00:00Z\r\n" \
    "anthropic-ratelimit-tokens-limit: 480000\r\n" \
    "anthropic-ratelimit-tokens-remaining: 479000\r\n" \
    "anthropic-ratelimit-tokens-reset: 2026-11-24T10:00:00Z\r\n" \
    "request-id: req_011CVRbenchbenchbenchben\r\n" \
    "strict-transport-security: max-age=31536000; includeSubDomains; preload\r\n" \
    "anthropic-organization-id: 5e0c5d5e-0000-4000-8000-0123456789ab\r\n" \
    "x-envoy-upstream-service-time: 812\r\n" \
    "cf-cache-status: DYNAMIC\r\n" \
    "X-Robots-Tag: none\r\n" \
    "Server: cloudflare\r\n" \
    "CF-RAY: 9a3b8c7d6e5f4a3b-FRA\r\n"

static const char TEXT[] =
    "A proxy stands between those who ask and those who response. It says who may come in, holds the "
    "key that nobody else should see, and otherwise keeps out of the way: what is asked arrives as "
    "it was written, what is answered comes back as it was given, and the time that it takes is "
    "too short to be felt. That is all it has to do; it is more than it seems, since it has to do "
    "so always, also when one of the two sides is slow, is silent, or goes away.";

static const char MESSAGE[] =
    "{\"model\":\"claude-sonnet-5-5\",\"id\":\"msg_01bench%017lu\",\"type\":\"message\","
    "\"role\":\"assistant\",\"content\":[{\"type\":\"text\",\"text\":\"%s\"}],"
    "\"stop_reason\":\"end_turn\",\"stop_sequence\":null,\"usage\":{\"input_tokens\":42,"
    "\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":0,\"output_tokens\":96,"
    "\"service_tier\":\"standard\"}}";

#define EVENT(type, data) "event: " type "\ndata: {\"type\":\"" type "\"" data "}\n\n"

static const char START[] = EVENT("message_start",
    ",\"message\":{\"model\":\"claude-sonnet-5-5\",\"id\":\"msg_01bench%017lu\","
    "\"type\":\"message\",\"role\":\"assistant\",\"content\":[],\"stop_reason\":null,"
    "\"stop_sequence\":null,\"usage\":{\"input_tokens\":42,\"cache_creation_input_tokens\":0,"
    "\"cache_read_input_tokens\":0,\"output_tokens\":1,\"service_tier\":\"standard\"}}");
static const char *const BEGINNING[] = {
    EVENT("content_block_start", ",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}"),
    EVENT("ping", ""),
};
/* each another: LiteLLM ends a stream that repeats itself */
static const char DELTA[] = EVENT("content_block_delta",
    ",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\" words %06ld\"}");
static const char *const END[] = {
    EVENT("content_block_stop", ",\"index\":0"),
    EVENT("message_delta",
          ",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},"
          "\"usage\":{\"input_tokens\":42,\"output_tokens\":96}"),
    EVENT("message_stop", ""),
};

static void watch(struct connection *c, int operation, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};

    epoll_ctl(poller, operation, c->fd, &event);
}

static void unpace(struct connection *c)
{
    if (c->period) {
        if (c->previous)
            c->previous->next = c->next;
        else
            paced = c->next;
        if (c->next)
            c->next->previous = c->previous;
    }
    c->period = 0;
}

static void end(struct connection *c)
{
    unpace(c);
    close(c->fd);
    free(c->out);
    free(c);
}

static void put_chunk(struct connection *c, const char *event)
{
    c->out_length += (size_t)sprintf(c->out + c->out_length, "%zx\r\n%s\r\n", strlen(event), event);
}

static void put_delta(struct connection *c)
{
    char event[256];

    snprintf(event, sizeof event, DELTA, c->events);
    put_chunk(c, event);
    if (--c->events || c->idle)
        return;
    for (size_t i = 0; i < sizeof END / sizeof *END; i++)
        put_chunk(c, END[i]);
    c->out_length += (size_t)sprintf(c->out + c->out_length, "0\r\n\r\n");
}

static long asked(const struct connection *c, const char *word)
{
    const char *found = strstr(c->prompt, word);

    return found ? atol(found + strlen(word)) : 0;
}

static void begin_stream(struct connection *c)
{
    char start[512];
    long rate = asked(c, "rate=");

    c->streaming = true;
    c->idle = strstr(c->prompt, "idle");
    c->events = asked(c, "events=");
    c->out_length = (size_t)sprintf(c->out, HEADERS "Cache-Control: no-cache\r\n"
                                    "Transfer-Encoding: chunked\r\n\r\n",
                                    "text/event-stream; charset=utf-8");
    snprintf(start, sizeof start, START, ++messages);
    put_chunk(c, start);
    for (size_t i = 0; i < sizeof BEGINNING / sizeof *BEGINNING; i++)
        put_chunk(c, BEGINNING[i]);
    if (c->events < 1)
        c->events = 1;
    if (!rate)
        return;
    /* streams that begin together must not go in step */
    phase += 0.618034;
    phase -= (int)phase;
    c->period = 1000000000 / rate;
    c->due = now() + (int64_t)(phase * (double)c->period);
    c->previous = NULL;
    c->next = paced;
    if (paced)
        paced->previous = c;
    paced = c;
}

static void response(struct connection *c)
{
    char body[1024];

    c->prompt[c->prompt_length] = 0;
    if (!c->out)
        c->out = malloc(BURST + 4096);
    c->sent = c->out_length = 0;
    if (strstr(c->prompt, "\"stream\":true") || strstr(c->prompt, "\"stream\": true")) {
        begin_stream(c);
        return;
    }
    int length = snprintf(body, sizeof body, MESSAGE, ++messages, TEXT);
    c->out_length = (size_t)sprintf(c->out, HEADERS "Content-Length: %d\r\n\r\n%s",
                                    "application/json", length, body);
}

/* Writes what is ready, and makes more ready where nothing paces it. False: it is gone. */
static bool flush(struct connection *c)
{
    for (;;) {
        while (c->streaming && c->events && !c->period && c->out_length < BURST)
            put_delta(c);
        if (c->sent == c->out_length)
            break;
        ssize_t n = send(c->fd, c->out + c->sent, c->out_length - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            return true;
        }
        if (n < 0)
            return false;
        c->sent += (size_t)n;
        if (c->sent == c->out_length)
            c->sent = c->out_length = 0;
    }
    if (c->streaming && !c->events && !c->idle) {
        unpace(c);
        c->streaming = false;
    }
    return true;
}

/* Reads, and responses each request when it is whole. False: the client is gone. */
static bool receive(struct connection *c)
{
    static char data[262144];
    const char *body;
    size_t length;
    ssize_t n = recv(c->fd, data, sizeof data, 0), taken = 0;

    if (n <= 0)
        return n < 0 && errno == EAGAIN;
    while (taken < n) {
        ssize_t step = message_take(&c->request, data + taken, (size_t)(n - taken), &body, &length);
        if (step < 0)
            return false;
        taken += step;
        size_t room = sizeof c->prompt - 1 - c->prompt_length;
        size_t kept = length < room ? length : room;
        if (kept)
            memcpy(c->prompt + c->prompt_length, body, kept);
        c->prompt_length += kept;
        if (c->request.state != DONE)
            continue;
        response(c);
        message_reset(&c->request);
        c->prompt_length = 0;
        if (!flush(c))
            return false;
    }
    return true;
}

static void accept_all(int listener)
{
    int fd, one = 1;

    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = calloc(1, sizeof *c);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c->fd = fd;
        watch(c, EPOLL_CTL_ADD, EPOLLIN);
    }
}

/* Sends what is due, and says when the next is. */
static int64_t pace(void)
{
    int64_t next = -1, time = now();

    for (struct connection *c = paced, *following; c; c = following) {
        following = c->next;
        while (c->events && c->due <= time && c->out_length < BURST) {
            put_delta(c);
            c->due += c->period;
        }
        if (!flush(c))
            end(c);
        else if (c->period && c->events && (next < 0 || c->due < next))
            next = c->due;
    }
    return next;
}

int main(int count, char **arguments)
{
    if (count != 2)
        die("usage: mock PORT");
    struct sockaddr_in address = loopback(arguments[1]);
    socklen_t size = sizeof address;
    int listener = tcp_socket(), one = 1;
    struct epoll_event events[256], listening = {.events = EPOLLIN};

    prctl(PR_SET_TIMERSLACK, 1);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096)
        || getsockname(listener, (struct sockaddr *)&address, &size))
        fail("listen");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    poller = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &listening);
    for (;;) {
        int n = wait_until(poller, events, 256, pace());
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c) {
                accept_all(listener);
                continue;
            }
            if (events[i].events & EPOLLOUT) {
                watch(c, EPOLL_CTL_MOD, EPOLLIN);
                if (!flush(c)) {
                    end(c);
                    continue;
                }
            }
            if ((events[i].events & ~(uint32_t)EPOLLOUT) && !receive(c))
                end(c);
        }
    }
}
