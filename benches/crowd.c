/*
 * A crowd: COUNT processes that sleep until nobody holds this program's stdin any more. It says `ready` once all are there.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(int argc, char **argv) {
    pid_t parent = getpid();
    for (int left = argc > 1 ? atoi(argv[1]) : 0; left > 0; left--) {
        pid_t pid = fork();
        if (pid < 0) {
            perror("fork");
            return 1;
        }
        if (pid == 0) {
            /* None outlives the program, however that ends. */
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() == parent) pause();
            _exit(0);
        }
    }
    puts("ready");
    fflush(stdout);
    char byte;
    while (read(STDIN_FILENO, &byte, 1) > 0) {}
    return 0;
}
