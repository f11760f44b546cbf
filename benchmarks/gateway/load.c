/* Asks a gateway as fast as it answers, or holds many streams open, and costs little itself: one thread, epoll.

     load PORT CONNECTIONS SECONDS REQUEST_FILE        each connection sends the request again when its answer is whole
     load PORT CONNECTIONS SECONDS REQUEST_FILE hold   each sends it once; after SECONDS all hang up at the same moment

   REQUEST_FILE holds one whole HTTP request, head and body. What was seen is printed as one line of JSON; times are
   seconds. An answer's first byte is that of its body. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_BYTES = 16384, EVENTS = 1024, MOST_SECONDS = 20 };
enum state { IN_HEAD, IN_LENGTH, IN_CHUNK_SIZE, IN_CHUNK, AFTER_CHUNK, IN_TRAILER };

struct connection {
    int fd;
    enum state state;
    char head[HEAD_BYTES]; /* of an answer; later the line of a chunk's size */
    size_t held, left;     /* bytes in `head`; bytes left of a body or a chunk */
    int status, closes, has_length, was_newline;
    double sent, first, heard, longest_gap;
    long events;
};

struct seconds {
    float *values;
    size_t count, room;
};

static struct connection *connections;
static struct seconds latencies, firsts;
static char request[1 << 20];
static size_t request_length;
static long requests, failed, events, whole_events, ended_early;
static int port, poller, hold, stopping;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void note(struct seconds *list, double value) {
    if (list->count == list->room) {
        list->room = list->room ? list->room * 2 : 1 << 16;
        list->values = realloc(list->values, list->room * sizeof *list->values);
    }
    list->values[list->count++] = (float)value;
}

static int by_value(const void *one, const void *other) {
    float a = *(const float *)one, b = *(const float *)other;
    return (a > b) - (a < b);
}

static double percentile(struct seconds *list, double share) {
    if (list->count == 0) return 0;
    qsort(list->values, list->count, sizeof *list->values, by_value);
    size_t at = (size_t)(share * (double)list->count);
    return list->values[at < list->count ? at : list->count - 1];
}

static void ask(struct connection *it) {
    it->state = IN_HEAD;
    it->held = 0;
    it->first = 0;
    it->events = 0;
    it->was_newline = 0;
    it->sent = it->heard = now();
    if (send(it->fd, request, request_length, MSG_NOSIGNAL) != (ssize_t)request_length) failed++;
}

static void open_connection(struct connection *it) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1;
    it->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (it->fd < 0 || connect(it->fd, (struct sockaddr *)&address, sizeof address) != 0) {
        perror("load cannot connect");
        exit(1);
    }
    setsockopt(it->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(it->fd, F_SETFL, fcntl(it->fd, F_GETFL) | O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = it};
    epoll_ctl(poller, EPOLL_CTL_ADD, it->fd, &event);
    ask(it);
}

static void open_again(struct connection *it) {
    close(it->fd);
    it->fd = -1;
    if (!hold && !stopping) open_connection(it);
}

static void whole(struct connection *it) {
    double moment = now();
    requests++;
    failed += it->status != 200;
    whole_events += it->events;
    note(&latencies, moment - it->sent);
    note(&firsts, it->first - it->sent);
    if (hold)
        ended_early++;
    else if (it->closes)
        open_again(it);
    else if (!stopping)
        ask(it);
}

static void head_came(struct connection *it) {
    it->status = atoi(it->head + 9);
    it->closes = it->has_length = 0;
    int chunked = 0;
    it->left = 0;
    for (char *line = strchr(it->head, '\n'); line != NULL; line = strchr(line, '\n')) {
        line++;
        if (strncasecmp(line, "content-length:", 15) == 0) {
            it->left = strtoul(line + 15, NULL, 10);
            it->has_length = 1;
        }
        if (strncasecmp(line, "transfer-encoding: chunked", 26) == 0) chunked = 1;
        if (strncasecmp(line, "connection: close", 17) == 0) it->closes = 1;
    }
    it->held = 0;
    it->state = chunked ? IN_CHUNK_SIZE : IN_LENGTH;
}

static void body_came(struct connection *it, const char *data, size_t length) {
    double moment = now();
    if (it->first == 0)
        it->first = moment;
    else if (moment - it->heard > it->longest_gap)
        it->longest_gap = moment - it->heard;
    it->heard = moment;
    for (const char *at = data, *end = data + length; (at = memchr(at, '\n', (size_t)(end - at))) != NULL; at++) {
        if (at > data ? at[-1] == '\n' : it->was_newline) it->events++, events++;
        if (at + 1 == end) break;
    }
    if (length > 0) it->was_newline = data[length - 1] == '\n';
}

/* Of what stands in `data`: how many bytes belong to the line or head that ends with `end`; it is whole when `held` is 0
   afterwards and `head` has it. */
static size_t collect(struct connection *it, const char *data, size_t length, const char *end) {
    size_t used = 0, size = strlen(end);
    while (used < length && it->held < HEAD_BYTES - 1) {
        it->head[it->held++] = data[used++];
        if (it->held >= size && memcmp(it->head + it->held - size, end, size) == 0) {
            it->head[it->held] = 0;
            it->held = 0;
            return used;
        }
    }
    return used;
}

static void came(struct connection *it, const char *data, size_t length) {
    while (length > 0 && it->fd >= 0) {
        size_t used;
        switch (it->state) {
        case IN_HEAD:
            used = collect(it, data, length, "\r\n\r\n");
            if (it->held == 0) head_came(it);
            if (it->held == 0 && it->state == IN_LENGTH && it->has_length && it->left == 0) whole(it);
            break;
        case IN_LENGTH:
        case IN_CHUNK:
            used = length < it->left || (it->state == IN_LENGTH && !it->has_length) ? length : it->left;
            body_came(it, data, used);
            it->left -= used;
            if (it->left == 0 && it->state == IN_CHUNK)
                it->state = AFTER_CHUNK;
            else if (it->left == 0 && it->has_length)
                whole(it);
            break;
        case AFTER_CHUNK:
            used = collect(it, data, length, "\r\n");
            if (it->held == 0) it->state = IN_CHUNK_SIZE;
            break;
        case IN_CHUNK_SIZE:
            used = collect(it, data, length, "\r\n");
            if (it->held == 0) {
                it->left = strtoul(it->head, NULL, 16);
                it->state = it->left ? IN_CHUNK : IN_TRAILER;
            }
            break;
        default: /* IN_TRAILER */
            used = collect(it, data, length, "\r\n");
            if (it->held == 0 && it->head[0] == '\r') whole(it);
        }
        data += used;
        length -= used;
    }
}

static void read_from(struct connection *it) {
    static char data[1 << 16];
    ssize_t got = recv(it->fd, data, sizeof data, 0);
    if (got > 0) {
        came(it, data, (size_t)got);
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        int waits = it->state == IN_HEAD && it->held == 0; /* closed while the request was on its way: ask again */
        if (!waits || hold) failed++;
        open_again(it);
    }
}

static void until(double end) {
    struct epoll_event ready[EVENTS];
    double left;
    while ((left = end - now()) > 0) {
        int got = epoll_wait(poller, ready, EVENTS, (int)(left * 1000) + 1);
        for (int at = 0; at < got; at++) read_from(ready[at].data.ptr);
    }
}

static void read_request(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        exit(1);
    }
    request_length = fread(request, 1, sizeof request, file);
    fclose(file);
}

static double hang_up(int count, double *longest) {
    double moment = now();
    for (int at = 0; at < count; at++) {
        struct connection *it = &connections[at];
        if (it->first == 0) continue;
        note(&firsts, it->first - it->sent);
        if (moment - it->heard > it->longest_gap) it->longest_gap = moment - it->heard;
        if (it->longest_gap > *longest) *longest = it->longest_gap;
    }
    moment = now();
    for (int at = 0; at < count; at++)
        if (connections[at].fd >= 0) close(connections[at].fd);
    return moment;
}

int main(int count, char **given) {
    if (count < 5) return fprintf(stderr, "usage: load PORT CONNECTIONS SECONDS REQUEST_FILE [hold]\n"), 2;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    port = atoi(given[1]);
    int wanted = atoi(given[2]);
    hold = count > 5 && strcmp(given[5], "hold") == 0;
    read_request(given[4]);
    poller = epoll_create1(0);
    connections = calloc((size_t)wanted, sizeof *connections);
    double began = now(), hung_up_at = 0, longest = 0;
    for (int at = 0; at < wanted; at++) {
        open_connection(&connections[at]);
        if (hold && at % 64 == 63) until(now() + 0.002); /* read meanwhile what has come */
    }
    until((hold ? now() : began) + atof(given[3]));
    while (!hold && requests == 0 && now() - began < MOST_SECONDS) until(now() + 0.05); /* it tells of one at least */
    double seconds = now() - began;
    stopping = 1;
    if (hold) hung_up_at = hang_up(wanted, &longest);
    printf("{\"seconds\":%.6f,\"requests\":%ld,\"failed\":%ld,\"events\":%ld,\"whole_events\":%ld,\"p50\":%.9f,\"p99\":%.9f,"
           "\"first_p50\":%.9f,\"first_p99\":%.9f,\"answering\":%zu,\"ended_early\":%ld,\"longest_gap\":%.6f,"
           "\"hung_up_at\":%.6f}\n",
           seconds, requests, failed, events, whole_events, percentile(&latencies, 0.5), percentile(&latencies, 0.99),
           percentile(&firsts, 0.5), percentile(&firsts, 0.99), firsts.count, ended_early, longest, hung_up_at);
    return 0;
}
