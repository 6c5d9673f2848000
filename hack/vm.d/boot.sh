# shellcheck shell=bash
# hack/vm run and shell: one QEMU, its folders and channels, and its end.
#
# Each guest has a folder under the cache's run/, locked as long as it lives:
#   initramfs  busybox, initramfs-init, guest-init and what this guest is to do
#   disk       the scratch disk, sparse
#   scratch/   the guest's /scratch, unless the caller gave a folder
#   console    what the guest's kernel says
#   out, err, status   pipes to QEMU's ports of these names

readonly boot_timeout="${TRACKBED_VM_BOOT_TIMEOUT:-180}"
readonly disk_size=8G

# What end_guest ends and removes. Not local to boot: a trap may run when that has returned.
qemu_pid='' work='' terminal=''

boot() {
    local mode="$1"
    shift
    local status_line='' code='' copy_pids=()
    local stdout_fd='' stderr_fd='' status_fd='' qemu=()

    make_work_folder
    trap 'end_guest' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP

    compose_shares
    write_command "$@" >"$work/command"
    make_initramfs "$mode"
    truncate --size "$disk_size" "$work/disk"
    PATH="$PATH:/usr/sbin:/sbin" mkfs.ext4 -q -E lazy_itable_init=1,lazy_journal_init=1,nodiscard \
        "$work/disk"
    compose_qemu "$mode"
    start_qemu "$mode"
    follow_guest "$mode"
    finish_output
    exit "$code"
}

# --- the guest's folder -------------------------------------------------------

make_work_folder() {
    local lock
    mkdir -p "$cache/run"
    remove_stale_work
    work="$(mktemp -d "$cache/run/XXXXXXXX")"
    exec {lock}>"$work/lock"
    flock "$lock"
    mkdir "$work/scratch"
}

# Folders whose hack/vm was killed before it could remove them.
remove_stale_work() {
    local folder lock
    for folder in "$cache"/run/*/; do
        [[ -e "$folder/lock" ]] || continue
        exec {lock}<"$folder/lock"
        if flock --nonblock "$lock"; then
            rm -rf "$folder"
        fi
        exec {lock}<&-
    done
}

end_guest() {
    local status=$?
    trap '' INT TERM HUP
    if [[ -n "$qemu_pid" ]]; then
        kill "$qemu_pid" 2>/dev/null || true
        for _ in {1..30}; do
            kill -0 "$qemu_pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$qemu_pid" 2>/dev/null || true
        wait "$qemu_pid" 2>/dev/null || true
    fi
    [[ -z "$terminal" ]] || stty "$terminal" 2>/dev/null || true
    [[ -z "$work" ]] || rm -rf "$work"
    exit "$status"
}

# --- what the guest is given -------------------------------------------------

# Lines of `tag mode path-in-guest path-on-host`: the repository and the build's
# target folder at the paths they have here, and the folder for results.
compose_shares() {
    shares=("repo ro $repository $repository")
    if [[ "$target_folder/" != "$repository"/* && -d "$target_folder" ]]; then
        shares+=("target ro $target_folder $target_folder")
    fi
    shares+=("scratch rw /scratch ${scratch_folder:-$work/scratch}")
}

# The bash script that the guest runs.
write_command() {
    local name
    printf 'cd %q || exit 125\n' "$repository"
    # shellcheck disable=SC2016 # the guest expands it
    printf 'export PATH=%q:%q:$PATH TERM=%q TRACKBED_GUEST=1 TRACKBED_SCRATCH=/scratch\n' \
        "$target_folder/release" "$target_folder/debug" "${TERM:-linux}"
    for name in "${!environment[@]}"; do
        printf 'export %s=%q\n' "$name" "${environment[$name]}"
    done
    [[ -z "$terminal" ]] || printf 'stty rows %d cols %d\n' $(stty size)
    printf 'exec'
    printf ' %q' "$@"
    echo
}

make_initramfs() {
    local mode="$1" tree="$work/tree" guest_part="$work/tree/trackbed-vm"
    mkdir -p "$tree"/{bin,modules,proc,sys,dev,image,layer,newroot} "$guest_part"
    cp "$guest/busybox" "$tree/bin/busybox"
    ln -s busybox "$tree/bin/sh"
    local applet
    for applet in mount grep poweroff insmod sleep mkdir ln cp ip switch_root; do
        ln -s busybox "$tree/bin/$applet"
    done
    cp "$guest/kernels/$kernel"/early-modules/* "$tree/modules/"
    cp "$vm_d/initramfs-init" "$tree/init"
    cp "$vm_d/guest-init" "$guest_part/guest-init"
    printf '%s\n' "${shares[@]}" >"$guest_part/shares"
    echo "$mode" >"$guest_part/mode"
    {
        list modules
        ((nics == 0)) || printf '%s\n' igb igbvf
    } >"$guest_part/modules"
    [[ ! -e "$work/command" ]] || cp "$work/command" "$guest_part/command"
    (cd "$tree" && find . | "$guest/busybox" cpio -o -H newc 2>/dev/null) >"$work/initramfs"
    rm -rf "$tree"
}

# --- QEMU ---------------------------------------------------------------------

# A value inside a QEMU option: its commas are doubled.
quoted() {
    echo "${1//,/,,}"
}

machine() {
    qemu=(
        qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot
        -machine q35 -smp "$cpus" -m "$memory"
        -kernel "$guest/kernels/$kernel/vmlinux" -initrd "$work/initramfs"
        -chardev "file,id=console,path=$(quoted "$work/console")" -serial chardev:console
    )
    # Emulation: the fifth level of page tables only costs time, and the clock's
    # watchdog takes a busy host for a broken clock. Without the promise that string
    # instructions are fast, the kernel copies 8 bytes at a time and not, as
    # emulated, single ones: reads from the page cache are about twice as fast.
    if [[ "$1" == kvm ]]; then
        qemu+=(-accel kvm -cpu host)
    else
        qemu+=(-accel "tcg,thread=multi,tb-size=512" -cpu max,la57=off,erms=off,fsrm=off)
    fi
}

readonly kernel_line="console=ttyS0 quiet panic=-1 oops=panic mitigations=off nokaslr \
audit=0 nowatchdog no_timer_check apparmor=0 rcupdate.rcu_expedited=1 cryptomgr.notests init_on_alloc=0"

compose_qemu() {
    local mode="$1" index tag path option
    local accelerator line="$kernel_line"
    accelerator="$(accelerator)"
    machine "$accelerator"
    [[ "$accelerator" == kvm ]] || line+=" tsc=reliable"
    qemu+=(
        -append "$line"
        -drive "file=$(quoted "$guest/root.ext4"),if=none,id=root,format=raw,readonly=on"
        -device virtio-blk-pci,drive=root
        -drive "file=$(quoted "$work/disk"),if=none,id=disk,format=raw,cache=unsafe,discard=unmap"
        -device nvme,drive=disk,serial=trackbed
        -device virtio-serial-pci
    )
    for index in "${!shares[@]}"; do
        read -r tag option _ path <<<"${shares[index]}"
        [[ "$option" == ro ]] && option=",readonly=on" || option=
        qemu+=(
            -fsdev "local,id=$tag,path=$(quoted "$path"),security_model=none,multidevs=remap$option"
            -device "virtio-9p-pci,fsdev=$tag,mount_tag=$tag"
        )
    done
    for ((index = 0; index < nics; index++)); do
        qemu+=(
            -device "pcie-root-port,id=slot$index,chassis=$index,slot=$index"
            -netdev "user,id=net$index,restrict=on"
            -device "igb,bus=slot$index,netdev=net$index,romfile="
        )
    done
    qemu+=("${qemu_arguments[@]}")
}

# A port named $1 whose data QEMU writes to the open pipe $2.
add_port() {
    qemu+=(
        -chardev "file,id=$1,path=/dev/fd/$2"
        -device "virtserialport,chardev=$1,name=$1"
    )
}

# The ports are pipes that this script opened, so it never waits for a QEMU that
# did not start: when QEMU is gone, their ends are.
start_qemu() {
    local mode="$1" name hold out err status_end
    for name in out err status; do
        mkfifo "$work/$name"
    done
    exec {hold}<>"$work/status" {status_fd}<"$work/status" {status_end}>"$work/status" {hold}>&-
    add_port status "$status_end"
    if [[ "$mode" == shell ]]; then
        qemu+=(-chardev stdio,id=terminal,signal=off -device virtconsole,chardev=terminal)
        terminal="$(stty -g)"
        setpriv --pdeathsig KILL "${qemu[@]}" <&0 2>"$work/qemu-errors" &
        qemu_pid=$!
    else
        cat "$work/out" &
        copy_pids+=($!)
        cat "$work/err" >&2 &
        copy_pids+=($!)
        exec {out}>"$work/out" {err}>"$work/err"
        add_port stdout "$out"
        add_port stderr "$err"
        setpriv --pdeathsig KILL "${qemu[@]}" </dev/null >"$work/qemu-errors" 2>&1 &
        qemu_pid=$!
        exec {out}>&- {err}>&-
    fi
    exec {status_end}>&-
}

# Reads the guest's steps (see guest-init) until it ended; sets `code`.
follow_guest() {
    local mode="$1" deadline=$((SECONDS + boot_timeout)) step='booting' status
    while true; do
        status=0
        read -r -t 1 -u "$status_fd" status_line || status=$?
        if ((status == 0)); then
            case "$status_line" in
                ready)
                    step='running'
                    deadline=$((SECONDS + timeout))
                    ((verbose)) && say "the command starts ${SECONDS} s after the start of hack/vm"
                    ;;
                exit\ *)
                    code="${status_line#exit }"
                    return
                    ;;
                failed\ *)
                    fail_guest "the guest could not be set up: ${status_line#failed }"
                    ;;
            esac
        elif ((status <= 128)); then
            fail_guest "the guest ended while $step, without an exit status (a kernel panic?)"
        elif ((SECONDS >= deadline)); then
            if [[ "$step" == booting ]]; then
                fail_guest "the guest did not come up within $boot_timeout s (TRACKBED_VM_BOOT_TIMEOUT)"
            elif [[ "$mode" != shell ]]; then
                fail_guest "the command did not end within $timeout s (--timeout)" "$exit_timeout"
            fi
        elif [[ "$mode" != shell ]] && ! kill -0 "${copy_pids[0]}" 2>/dev/null; then
            # Whoever read our stdout went away, as in `hack/vm run ... | head`.
            exit 141
        fi
    done
}

# With the command's output handed over, what QEMU still does is of no interest.
finish_output() {
    kill "$qemu_pid" 2>/dev/null || true
    ((${#copy_pids[@]} == 0)) || wait "${copy_pids[@]}" || true
}

# The last 40 lines, but a crash from its first line on.
console_tail() {
    local crash
    # No match is the usual case and no failure.
    crash="$(grep -anm1 -E 'Kernel panic|Oops|BUG:' "$work/console" | cut -d: -f1 || true)"
    if [[ -n "$crash" ]]; then
        sed -n "$crash,$((crash + 99))p" "$work/console"
    else
        tail -n 40 "$work/console"
    fi
}

fail_guest() {
    say "$1"
    if [[ -s "$work/qemu-errors" ]]; then
        say "QEMU said:"
        sed 's/^/    /' "$work/qemu-errors" >&2
    fi
    if [[ -s "$work/console" ]]; then
        say "the last lines of its console:"
        console_tail | tr -d '\r' | sed 's/^/    /' >&2
    fi
    exit "${2:-$exit_failure}"
}

# --- KVM or emulation -------------------------------------------------------------

# /dev/kvm may exist and yet not run an ordinary guest, so one is booted once per
# boot of the host.
accelerator() {
    if [[ -n "${TRACKBED_VM_ACCEL:-}" ]]; then
        echo "$TRACKBED_VM_ACCEL"
        return
    fi
    if [[ ! -w /dev/kvm ]]; then
        echo tcg
        return
    fi
    local result
    result="$cache/kvm-works-$(</proc/sys/kernel/random/boot_id)"
    if [[ ! -e "$result" ]]; then
        say "trying whether /dev/kvm runs a guest (20 s at most, once)"
        rm -f "$cache"/kvm-works-*
        probe_kvm && echo kvm >"$result" || echo tcg >"$result"
        say "guests run with $(<"$result")"
    fi
    echo "$(<"$result")"
}

probe_kvm() {
    local qemu
    machine kvm
    qemu+=(-append "console=ttyS0 panic=-1 trackbed.probe")
    timeout --kill-after=2 20 setpriv --pdeathsig KILL "${qemu[@]}" </dev/null >/dev/null 2>&1
    grep -q 'trackbed-vm: probe ok' "$work/console"
}
