# fish completion for kata-cgroup-hook(8), in step with its command line by tests/shipped/.

set -l stages prestart createRuntime createContainer poststart poststop
set -l words $stages status reconcile check

# The sandboxes that there are records of; root alone may look.
function __kata_cgroup_hook_sandboxes
    for record in /run/kata-cgroup-hook/*.json
        basename $record .json
    end
end

complete -c kata-cgroup-hook -f

set -l none_yet "not __fish_seen_subcommand_from $words"
complete -c kata-cgroup-hook -n $none_yet -a prestart -d 'Place the sandbox'
complete -c kata-cgroup-hook -n $none_yet -a createRuntime -d 'Place the sandbox'
complete -c kata-cgroup-hook -n $none_yet -a createContainer -d 'Place the sandbox'
complete -c kata-cgroup-hook -n $none_yet -a poststart -d 'Place the sandbox'
complete -c kata-cgroup-hook -n $none_yet -a poststop -d 'Release the sandbox'
complete -c kata-cgroup-hook -n $none_yet -a status -d 'Show every sandbox of this host, or one of them'
complete -c kata-cgroup-hook -n $none_yet -a reconcile -d 'Bring every sandbox to where it should be'
complete -c kata-cgroup-hook -n $none_yet -a check -d 'Look at host, engines and Kata'
complete -c kata-cgroup-hook -n $none_yet -s h -l help -d 'Show the command line'
complete -c kata-cgroup-hook -n $none_yet -s V -l version -d 'Show the version'

set -l after __fish_seen_subcommand_from
complete -c kata-cgroup-hook -n "$after $words" -l config -r -F -d 'Read this configuration'
complete -c kata-cgroup-hook -n "$after $stages reconcile" -l dry-run -d 'Print the steps, change nothing'
complete -c kata-cgroup-hook -n "$after $stages" -l state -r -F -d 'Read the OCI state from this'
complete -c kata-cgroup-hook -n "$after status check" -l json -d 'Print JSON'
complete -c kata-cgroup-hook -n "$after status" -l tree -d 'Show trees'
complete -c kata-cgroup-hook -n "$after status" -a '(__kata_cgroup_hook_sandboxes)' -d Sandbox
complete -c kata-cgroup-hook -n "$after reconcile" -l release-all -d 'Release every sandbox, to uninstall'
