/* The executable that a container runtime runs, on a host with a C compiler: ``podroute cni install`` compiles it.
 *
 * It does what ``cni/plugin.py`` does when all goes well, by the protocol that is written down there, and starts in a
 * twentieth of the time: it carries a call to the agent and the answer back. Whatever else may be (no agent, no
 * answer, no verb, VERSION) is the script's, which it carries with it and becomes then; PODROUTE_FAULT tells the script
 * the errno that ended the attempt.
 *
 * Compiled once, it serves any host: ``cni/compiled.py`` writes a host's paths and the script into ``texts``.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define PATIENCE 60 /* seconds without an octet from the agent after which it counts as away */
#define HEADER 12   /* octets: magic (4), version (2), fields or exit status (2), length of the rest (4) */
#define PART 65536
#define TEXTS 32768

extern char **environ;
/* A mark by which the file is known again and the texts below, one after the other, each ended by NUL. */
static const char texts[TEXTS] __attribute__((used)) = "podroute cni install writes here.\n";
enum text { SOCKET = 1, INTERPRETER, SCRIPT };
static const char magic_and_version[] = "PRCN\0\1";

struct buffer {
    char *data;
    size_t length, room;
};

static void become_script(const struct buffer *input, int fault);

static const char *text(enum text wanted)
{
    const char *at = texts;
    __asm__("" : "+r"(at)); /* they change once this is compiled: nothing may be concluded from what they are now */
    for (int number = 0; number < (int)wanted; number++)
        at += strlen(at) + 1;
    return at;
}

/* Make room for further octets and return where they go. */
static char *extend(struct buffer *buffer, size_t more)
{
    if (buffer->length + more > buffer->room) {
        size_t room = 2 * buffer->room + more;
        char *data = realloc(buffer->data, room);
        if (!data)
            become_script(NULL, ENOMEM);
        buffer->data = data;
        buffer->room = room;
    }
    return buffer->data + buffer->length;
}

static void append(struct buffer *buffer, const void *data, size_t length)
{
    memcpy(extend(buffer, length), data, length);
    buffer->length += length;
}

static void put_length(char *to, size_t length)
{
    for (int octet = 0; octet < 4; octet++)
        to[octet] = (char)(length >> (24 - 8 * octet));
}

static void append_field(struct buffer *frame, const struct buffer *field)
{
    char length[4];
    put_length(length, field->length);
    append(frame, length, sizeof length);
    append(frame, field->data, field->length);
}

/* Read to the end, or ``most`` octets. Returns 0 or an errno. */
static int read_in(int file, struct buffer *to, size_t most)
{
    while (to->length < most) {
        size_t left = most - to->length;
        ssize_t got = read(file, extend(to, PART), left < PART ? left : PART);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return errno == EAGAIN ? ETIMEDOUT : errno;
        if (!got)
            break;
        to->length += (size_t)got;
    }
    return 0;
}

static int write_out(int file, const char *data, size_t length)
{
    while (length) {
        ssize_t done = write(file, data, length);
        if (done < 0 && errno != EINTR)
            return errno;
        if (done > 0) {
            data += done;
            length -= (size_t)done;
        }
    }
    return 0;
}

/* Send a request; the descriptor travels with its first octet. Returns 0 or an errno. */
static int send_request(int agent, const struct buffer *frame, int netns)
{
    union {
        char octets[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control = {{0}};
    struct iovec part = {frame->data, frame->length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (netns >= 0) {
        message.msg_control = control.octets;
        message.msg_controllen = sizeof control.octets;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof netns);
        memcpy(CMSG_DATA(header), &netns, sizeof netns);
    }
    while (part.iov_len) {
        ssize_t sent = sendmsg(agent, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && (errno == EPIPE || errno == ECONNRESET))
            return 0; /* an agent that refuses a request says why before it has read all of it */
        if (sent < 0)
            return errno == EAGAIN ? ETIMEDOUT : errno;
        part.iov_base = (char *)part.iov_base + sent;
        part.iov_len -= (size_t)sent;
        message.msg_control = NULL;
        message.msg_controllen = 0;
    }
    return 0;
}

/* Have the agent answer a request. Returns 0 or an errno. */
static int ask(const struct buffer *frame, int netns, struct buffer *answer)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval patience = {PATIENCE, 0};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", text(SOCKET));
    int agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (agent < 0 || setsockopt(agent, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience)
        || setsockopt(agent, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience))
        return errno;
    if (connect(agent, (struct sockaddr *)&address, sizeof address))
        return errno == EAGAIN ? ETIMEDOUT : errno;
    int fault = send_request(agent, frame, netns);
    if (fault || (fault = read_in(agent, answer, HEADER)))
        return fault;
    if (answer->length < HEADER)
        return ECONNRESET;
    if (memcmp(answer->data, magic_and_version, 4))
        return EPROTO;
    const unsigned char *length = (const unsigned char *)answer->data + 8;
    size_t whole = HEADER + ((size_t)length[0] << 24 | (size_t)length[1] << 16 | (size_t)length[2] << 8 | length[3]);
    if ((fault = read_in(agent, answer, whole)))
        return fault;
    return answer->length < whole ? ECONNRESET : 0;
}

/* Go on as the script, which reads standard input anew. */
static void become_script(const struct buffer *input, int fault)
{
    char number[16];
    const char *interpreter = text(INTERPRETER);
    if (input) {
        int again = memfd_create("stdin", 0);
        if (again < 0 || write_out(again, input->data, input->length) || lseek(again, 0, SEEK_SET) || dup2(again, 0))
            _exit(1);
        close(again);
    }
    snprintf(number, sizeof number, "%d", fault);
    if (fault)
        setenv("PODROUTE_FAULT", number, 1);
    execl(interpreter, interpreter, "-IS", "-c", text(SCRIPT), (char *)NULL);
    dprintf(1, "{\"cniVersion\":\"1.0.0\",\"code\":5,\"msg\":\"podroute's plugin cannot start %s\","
               "\"details\":\"run `podroute cni install` again\"}\n", interpreter);
    _exit(1);
}

int main(void)
{
    struct buffer variables = {0}, input = {0}, number = {0}, frame = {0}, answer = {0};
    const char *verb = getenv("CNI_COMMAND"), *path = getenv("CNI_NETNS");
    if (!verb || !*verb || !strcmp(verb, "VERSION"))
        become_script(NULL, 0);
    int fault = read_in(0, &input, SIZE_MAX);
    if (fault)
        become_script(&input, fault);

    for (char **variable = environ; *variable; variable++)
        if (!strncmp(*variable, "CNI_", 4)) {
            if (variables.length)
                append(&variables, "", 1);
            append(&variables, *variable, strlen(*variable));
        }
    int netns = path && *path ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
    number.length = (size_t)sprintf(extend(&number, 16), "%d", path && *path && netns < 0 ? errno : 0);

    append(&frame, magic_and_version, 6);
    append(&frame, "\0\3\0\0\0\0", 6);
    append_field(&frame, &variables);
    append_field(&frame, &input);
    append_field(&frame, &number);
    put_length(frame.data + 8, frame.length - HEADER);
    if ((fault = ask(&frame, netns, &answer)))
        become_script(&input, fault);
    int status = (unsigned char)answer.data[6] << 8 | (unsigned char)answer.data[7];
    _exit(write_out(1, answer.data + HEADER, answer.length - HEADER) ? 1 : status);
}
