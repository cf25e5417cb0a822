/*
 * The floor under a run of the hook: the kernel's work for the changes alone, and the start of a small static program.
 *
 * It is told on stdin every path, value and number beforehand and does those writes in that order. It looks for nothing,
 * checks nobody, reads nothing back and keeps no record: what the hook takes beyond this is the price of being sure.
 *
 *     make PATH           a group; one that stands already will do, as for the hook
 *     write PATH VALUE    into a file, which stays open for the next write to the same one
 *     remove PATH         a group; one that others are in stays, and one that others have removed is gone, as with the hook
 *     pause MICROSECONDS  nothing, for so long
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char script[1 << 20];

static int fail(const char *word, const char *path) {
    dprintf(STDERR_FILENO, "floor: %s %s: %s\n", word, path, strerror(errno));
    return 1;
}

/* Cuts the word before `end` off the text at `*text`. */
static char *cut(char **text, char end) {
    char *word = *text, *at = strchr(word, end);
    if (at) *at++ = '\0';
    *text = at ? at : word + strlen(word);
    return word;
}

int main(void) {
    size_t length = 0;
    ssize_t got;
    while ((got = read(STDIN_FILENO, script + length, sizeof script - 1 - length)) > 0) length += got;

    const char *open_path = "";
    int file = -1;
    for (char *text = script; *text;) {
        char *line = cut(&text, '\n'), *verb = cut(&line, ' '), *path = cut(&line, ' ');
        if (!strcmp(verb, "make")) {
            if (mkdir(path, 0755) && errno != EEXIST) return fail(verb, path);
        } else if (!strcmp(verb, "remove")) {
            if (rmdir(path) && errno != EBUSY && errno != ENOTEMPTY && errno != ENOENT) return fail(verb, path);
        } else if (!strcmp(verb, "write")) {
            if (strcmp(path, open_path)) {
                if (file >= 0) close(file);
                open_path = path;
                if ((file = open(path, O_WRONLY)) < 0) return fail(verb, path);
            }
            if (write(file, line, strlen(line)) < 0) return fail(verb, path);
        } else if (!strcmp(verb, "pause")) {
            usleep(atoi(path));
        } else {
            errno = EINVAL;
            return fail("understand", verb);
        }
    }
    return 0;
}
