# What the stand-ins for launchers share: N processes of this machine, looked after as the real ones do.

# run N COMMAND …, where `variables I` prints those of process I. A signal to end goes to all, and so does one when a
# process fails, whose code is the job's.
run() {
    local n=$1 first_failure=0 code i
    shift
    for ((i = 0; i < n; i++)); do
        # shellcheck disable=SC2046 # words
        env $(variables "$i") "$@" &
    done
    # shellcheck disable=SC2046 # numbers
    end_all() { kill -TERM $(jobs -pr) 2>/dev/null; }
    trap end_all TERM
    while [[ -n $(jobs -pr) ]]; do
        wait -n
        code=$?
        # More than 128 may also be a signal to this shell, which has been passed on.
        if ((code != 0 && code != 143 && first_failure == 0)); then
            first_failure=$code
            end_all
        fi
    done
    return "$first_failure"
}
