# bash completion for kata-cgroup-hook(8), in step with its command line by tests/shipped/.

_kata_cgroup_hook() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} word='' choices='' i
    COMPREPLY=()
    case $previous in
    --config | --state)
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        return
        ;;
    esac
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        --config | --state) i=$((i + 1)) ;;
        -*) ;;
        *)
            word=${COMP_WORDS[i]}
            break
            ;;
        esac
    done
    case $word in
    '') choices='prestart createRuntime createContainer poststart poststop status reconcile check --help --version' ;;
    prestart | createRuntime | createContainer | poststart | poststop) choices='--config --dry-run --state' ;;
    status) choices="--config --tree --json $(_kata_cgroup_hook_sandboxes)" ;;
    reconcile) choices='--config --dry-run --release-all' ;;
    check) choices='--config --json' ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$current")
}

# The sandboxes that there are records of; root alone may look.
_kata_cgroup_hook_sandboxes() {
    local record
    for record in /run/kata-cgroup-hook/*.json; do
        [ ! -e "$record" ] || basename "$record" .json
    done
}

complete -F _kata_cgroup_hook kata-cgroup-hook
