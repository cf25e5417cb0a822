/*
 * One run of a program, and what it cost: the nanoseconds from before it is started until it has ended and been waited for,
 * its peak memory in KiB, and its exit code.
 *
 *     launch IDLE_MS STDIN PROGRAM [ARGUMENT...]
 *
 * Nothing is done for IDLE_MS first. A program of its own, small and static: the memory that a started program is charged
 * with begins at its starter's (exec_mmap in fs/exec.c, setmax_mm_hiwater_rss).
 */
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int input = open(argv[2], O_RDONLY);
    if (input < 0 || dup2(input, STDIN_FILENO) < 0 || close(input)) {
        perror(argv[2]);
        return 1;
    }
    usleep(1000 * atoi(argv[1]));

    pid_t pid;
    int status;
    struct rusage usage;
    long long start = now();
    int error = posix_spawn(&pid, argv[3], NULL, NULL, argv + 3, environ);
    if (error || wait4(pid, &status, 0, &usage) < 0) {
        fprintf(stderr, "%s: not started\n", argv[3]);
        return 1;
    }
    printf("%lld %ld %d\n", now() - start, usage.ru_maxrss, WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    return 0;
}
