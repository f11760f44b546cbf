/* A stand-in for an engine's OpenAI server that costs nearly nothing: one thread, epoll, HTTP/1.1 with keep-alive.

     engine PORT MODEL CHUNKS PACE_MS

   A chat is answered at once: whole, or with "stream": true as CHUNKS events of about 200 bytes, each in a write of its
   own. As an engine's steps do it, every stream gets its next event before any gets one more. With a PACE_MS a stream
   gets one in each such time only. GET /set?chunks=N&pace=MS changes both for what is asked later; GET /streams tells
   how many run and when the last one was hung up on, by the clock that all processes of the machine share. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { MOST_CONNECTIONS = 65536, EVENTS = 1024 };

struct connection {
    char *data; /* of a request that is not whole yet */
    size_t length, room;
    int place; /* among the streams that run, or -1 */
    long chunks_left;
    double due, pace;
};

static struct connection connections[MOST_CONNECTIONS];
static int running[MOST_CONNECTIONS], running_count;
static long chunks, answered, tokens, hung_up;
static double pace, last_hang_up;
static const char *model;
static char whole[1024], first[1024], chunk[512], last[256];
static int whole_length, first_length, chunk_length, last_length;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void send_all(int fd, const char *data, size_t length) {
    while (length > 0) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
        if (sent > 0) {
            data += sent;
            length -= (size_t)sent;
        } else if (sent < 0 && errno == EAGAIN) {
            struct pollfd one = {fd, POLLOUT, 0};
            poll(&one, 1, 1000);
        } else if (!(sent < 0 && errno == EINTR)) {
            return; /* its end will be read */
        }
    }
}

static void send_page(int fd, const char *status, const char *type, const char *body) {
    char page[4096];
    int length = snprintf(page, sizeof page, "HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n%s", status,
                          type, strlen(body), body);
    send_all(fd, page, (size_t)length);
}

static void stop_stream(int fd) {
    struct connection *it = &connections[fd];
    int moved = running[--running_count];
    running[it->place] = moved;
    connections[moved].place = it->place;
    it->place = -1;
}

static void start_stream(int fd) {
    struct connection *it = &connections[fd];
    it->place = running_count;
    running[running_count++] = fd;
    it->chunks_left = chunks - 1;
    it->pace = pace;
    it->due = now() + pace * (double)rand() / RAND_MAX; /* not all at the same moment */
    tokens++;
    send_all(fd, first, (size_t)first_length);
}

static void step(int fd) {
    struct connection *it = &connections[fd];
    if (it->chunks_left-- > 0) {
        send_all(fd, chunk, (size_t)chunk_length);
        it->due += it->pace;
        tokens++;
    } else {
        send_all(fd, last, (size_t)last_length);
        stop_stream(fd);
        answered++;
    }
}

static int wants_stream(const char *body, size_t length) {
    const char *found = memmem(body, length, "\"stream\"", 8), *end = body + length;
    if (found == NULL) return 0;
    for (found += 8; found < end && (*found == ' ' || *found == ':'); found++) {}
    return end - found >= 4 && memcmp(found, "true", 4) == 0;
}

static void tell_metrics(int fd) {
    char page[2048];
    snprintf(page, sizeof page,
             "vllm:num_requests_running{model_name=\"%s\"} %d\nvllm:num_requests_waiting{model_name=\"%s\"} 0\n"
             "vllm:generation_tokens_total{model_name=\"%s\"} %ld\nvllm:request_success_total{model_name=\"%s\"} %ld\n",
             model, running_count, model, model, tokens, model, answered);
    send_page(fd, "200 OK", "text/plain; version=0.0.4", page);
}

static void answer_get(int fd, const char *path) {
    char page[1024];
    if (strncmp(path, "/health", 7) == 0 || strncmp(path, "/flush_cache", 12) == 0) {
        send_page(fd, "200 OK", "application/json", "{}");
    } else if (strncmp(path, "/v1/models", 10) == 0) {
        snprintf(page, sizeof page,
                 "{\"object\":\"list\",\"data\":[{\"id\":\"%s\",\"object\":\"model\",\"created\":1,\"owned_by\":\"bench\","
                 "\"max_model_len\":8192}]}", model);
        send_page(fd, "200 OK", "application/json", page);
    } else if (strncmp(path, "/metrics", 8) == 0) {
        tell_metrics(fd);
    } else if (strncmp(path, "/version", 8) == 0) {
        send_page(fd, "200 OK", "application/json", "{\"version\":\"0\"}");
    } else if (strstr(path, "server_info") || strstr(path, "model_info")) { /* sglang-router's questions */
        snprintf(page, sizeof page, "{\"model_path\":\"%s\",\"served_model_name\":\"%s\",\"tp_size\":1,\"dp_size\":1,"
                 "\"is_generation\":true}", model, model);
        send_page(fd, "200 OK", "application/json", page);
    } else if (strncmp(path, "/streams", 8) == 0) {
        snprintf(page, sizeof page, "{\"running\":%d,\"hung_up\":%ld,\"last_hang_up\":%.6f}", running_count, hung_up,
                 last_hang_up);
        send_page(fd, "200 OK", "application/json", page);
    } else if (strncmp(path, "/set", 4) == 0) {
        double milliseconds = 0;
        sscanf(path, "/set?chunks=%ld&pace=%lf", &chunks, &milliseconds);
        pace = milliseconds / 1000;
        send_page(fd, "200 OK", "application/json", "{}");
    } else {
        send_page(fd, "404 Not Found", "application/json", "{\"error\":{\"message\":\"not here\",\"code\":404}}");
    }
}

/* The length of the request that stands at the beginning, 0 when it is not whole, -1 when it cannot be read. */
static long request_length(char *data, size_t length, size_t *head) {
    char *end = memmem(data, length, "\r\n\r\n", 4);
    if (end == NULL) return 0;
    *head = (size_t)(end - data) + 4;
    size_t body = 0;
    for (char *line = memchr(data, '\n', *head); line != NULL && line < end; line = memchr(line, '\n', (size_t)(end - line))) {
        line++;
        if (strncasecmp(line, "content-length:", 15) == 0) body = strtoul(line + 15, NULL, 10);
        if (strncasecmp(line, "transfer-encoding:", 18) == 0) return -1;
    }
    return length >= *head + body ? (long)(*head + body) : 0;
}

static void hang_up(int fd) {
    struct connection *it = &connections[fd];
    if (it->place >= 0) {
        stop_stream(fd);
        hung_up++;
        last_hang_up = now();
    }
    free(it->data);
    *it = (struct connection){.place = -1};
    close(fd);
}

static void answer_requests(int fd) {
    struct connection *it = &connections[fd];
    size_t head = 0;
    long length;
    while (it->place < 0 && (length = request_length(it->data, it->length, &head)) != 0) {
        if (length < 0) {
            send_page(fd, "411 Length Required", "application/json", "{}");
            hang_up(fd);
            return;
        }
        if (strncmp(it->data, "GET ", 4) == 0) {
            char path[512] = "";
            sscanf(it->data + 4, "%511[^ ]", path);
            answer_get(fd, path);
        } else if (wants_stream(it->data + head, (size_t)length - head)) {
            start_stream(fd);
        } else {
            tokens++;
            answered++;
            send_all(fd, whole, (size_t)whole_length);
        }
        it->length -= (size_t)length;
        memmove(it->data, it->data + length, it->length + 1);
    }
}

static void read_from(int fd) {
    struct connection *it = &connections[fd];
    if (it->room - it->length < 4096) {
        it->room = it->room ? it->room * 2 : 8192;
        it->data = realloc(it->data, it->room);
    }
    ssize_t got = recv(fd, it->data + it->length, it->room - it->length - 1, 0);
    if (got > 0) {
        it->length += (size_t)got;
        it->data[it->length] = 0;
        answer_requests(fd);
    } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        hang_up(fd);
    }
}

static void accept_all(int listener, int poller) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MOST_CONNECTIONS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        connections[fd] = (struct connection){.place = -1};
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

/* How long nothing will be due, in milliseconds for epoll. */
static int step_streams(void) {
    double moment = now(), next = moment + 60;
    for (int place = running_count - 1; place >= 0; place--) { /* one that ends is replaced by one that was stepped */
        int fd = running[place];
        if (connections[fd].due <= moment) step(fd);
        if (connections[fd].place >= 0 && connections[fd].due < next) next = connections[fd].due;
    }
    if (running_count == 0) return -1;
    return next <= moment ? 0 : (int)((next - moment) * 1000) + 1;
}

static void write_answers(void) {
    char body[600], event[600];
    int length = snprintf(
        body, sizeof body,
        "{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"%s\","
        "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"The capital of France is Paris.\"},"
        "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":24,\"completion_tokens\":8,\"total_tokens\":32}}", model);
    whole_length = snprintf(whole, sizeof whole,
                            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", length, body);
    length = snprintf(
        event, sizeof event,
        "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
        "\"model\":\"%s\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" Paris\"},\"finish_reason\":null}]}\n\n", model);
    chunk_length = snprintf(chunk, sizeof chunk, "%x\r\n%s\r\n", (unsigned)length, event);
    first_length = snprintf(first, sizeof first, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                            "transfer-encoding: chunked\r\n\r\n%s", chunk);
    last_length = snprintf(last, sizeof last, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
}

static int listening(int port) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 4096) != 0) {
        perror("engine cannot listen");
        exit(1);
    }
    return listener;
}

int main(int count, char **given) {
    if (count != 5) return fprintf(stderr, "usage: engine PORT MODEL CHUNKS PACE_MS\n"), 2;
    model = given[2];
    chunks = atol(given[3]);
    pace = atof(given[4]) / 1000;
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    write_answers();
    int listener = listening(atoi(given[1])), poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int got = epoll_wait(poller, events, EVENTS, step_streams());
        for (int at = 0; at < got; at++) {
            if (events[at].data.fd == listener)
                accept_all(listener, poller);
            else
                read_from(events[at].data.fd);
        }
    }
}
