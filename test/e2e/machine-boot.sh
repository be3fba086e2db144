#!/bin/sh
# Boots this machine's own root file system, copied on write, with the user data of a new machine: cloud-init's stages with
# Debian's modules (but for those of disks and networks), and sshd. Runs in namespaces of its own as root:
#   unshare --mount --net --pid --uts --ipc --fork --kill-child machine-boot.sh FOLDER
# FOLDER has user-data, vendor-data, login-key and known-hosts. What was seen goes to standard output, one `name: value` a line.
set -eu
folder=$1
mount --make-rprivate /
mkdir -p "$folder/cow"
mount -t tmpfs cow "$folder/cow"
mkdir "$folder/cow/upper" "$folder/cow/work" "$folder/cow/root"
root="$folder/cow/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/cow/upper,workdir=$folder/cow/work" "$root"
# Nothing of the real devices is in there.
mount -t tmpfs dev "$root/dev"
for device in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
  IFS=: read -r name major minor <<END
$device
END
  mknod -m 666 "$root/dev/$name" c "$major" "$minor"
done
ln -s /proc/self/fd "$root/dev/fd"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs run "$root/run"
mount -t tmpfs tmp "$root/tmp"
ip link set lo up
hostname localhost

# As an image is before its first boot: the package's own sshd_config, no host keys, nobody's login.
rm -rf "$root/etc/ssh/sshd_config.d" "$root"/etc/ssh/ssh_host_* "$root/root/.ssh" "$root/var/lib/cloud" "$root"/var/log/cloud-init*
mkdir -p "$root/etc/ssh/sshd_config.d" "$root/var/lib/cloud/seed/nocloud" "$root/run/sshd" "$root/opt/stand-ins"
cp "$root/usr/share/openssh/sshd_config" "$root/etc/ssh/sshd_config"
cp "$folder/user-data" "$folder/vendor-data" "$root/var/lib/cloud/seed/nocloud/"
printf 'instance-id: boot\nlocal-hostname: machine\n' > "$root/var/lib/cloud/seed/nocloud/meta-data"
cp "$folder/login-key" "$folder/known-hosts" "$root/tmp/"
chmod 600 "$root/tmp/login-key"
cat > "$root/etc/cloud/cloud.cfg.d/99-boot.cfg" <<END
datasource_list: [NoCloud]
network: {config: disabled}
cloud_init_modules: [bootcmd, write-files, users-groups, ssh]
cloud_config_modules: [ssh-import-id, set-passwords, runcmd]
cloud_final_modules: [package-update-upgrade-install, write-files-deferred, scripts-vendor, scripts-per-once, scripts-per-boot, scripts-per-instance, scripts-user, ssh-authkey-fingerprints, final-message]
END

# What is not on every machine, or would reach out of here: each call is told, with what sshd shows at that moment.
cat > "$root/opt/stand-ins/ufw" <<'END'
#!/bin/sh
echo "${0##*/} $* <$(banner)>" >> /run/calls
case "${0##*/} $*" in
"systemctl is-active -q ssh.socket") exit 1 ;;
"systemctl restart ssh") restart-sshd ;;
esac
[ ! -e "/run/${0##*/}-fails" ]
END
cat > "$root/opt/stand-ins/banner" <<'END'
#!/bin/bash
exec 3<>/dev/tcp/127.0.0.1/22 && IFS= read -r -t 5 line <&3 && printf %s "${line%$'\r'}"
END
cat > "$root/opt/stand-ins/restart-sshd" <<'END'
#!/bin/sh
if [ -e /run/sshd.pid ]; then
  old=$(cat /run/sshd.pid)
  kill "$old"
  while kill -0 "$old" 2> /dev/null; do sleep 0.02; done
fi
/usr/sbin/sshd
while ! banner > /dev/null 2>&1; do sleep 0.02; done
END
chmod 755 "$root"/opt/stand-ins/*
for name in systemctl apt-get service; do ln "$root/opt/stand-ins/ufw" "$root/opt/stand-ins/$name"; done

cat > "$root/run/boot" <<'END'
cloud-init init --local
cloud-init init
# Where systemd starts it: before the last stage, with what the first ones have written.
restart-sshd
cloud-init modules --mode=config
echo "banner before the last stage: $(banner)"
cloud-init modules --mode=final
sed 's/^/call: /' /run/calls
echo "banner: $(banner)"
echo "errors: $(tr -d '\n' < /run/cloud-init/result.json)"
grep -E 'WARNING|ERROR' /var/log/cloud-init.log | sed 's/^/log: /' || true
log_in() {
  ssh -o BatchMode=yes -o StrictHostKeyChecking=yes -o UserKnownHostsFile=/tmp/known-hosts -o GlobalKnownHostsFile=/dev/null \
    -o HostKeyAlgorithms=ssh-ed25519 "$@" 2>&1 || true
}
log_in -i /tmp/login-key root@127.0.0.1 'echo "login: $(id -un)"; sed "s/^/note: /" /root/CLAWCLOUD.md; stat -c "note mode: %a" /root/CLAWCLOUD.md'
echo "without key: $(log_in -o PubkeyAuthentication=no root@127.0.0.1 true | tail -1)"
echo "host keys: $(ls /etc/ssh/ssh_host_*_key | tr '\n' ' ')"

# The last step again, with one thing wrong at a time: it must not set the mark.
mark=/etc/ssh/sshd_config.d/01-clawcloud-mark.conf
script=/var/lib/cloud/instance/scripts/runcmd
again() {
  rm -f "$mark"
  sh "$script" > /dev/null 2>&1 || true
  if [ -e "$mark" ]; then echo "$1: marked"; else echo "$1: not marked"; fi
}
again 'again, all well'
touch /run/ufw-fails
again 'ufw fails'
rm /run/ufw-fails
mv /root/.ssh/authorized_keys /root/.ssh/kept
again 'no login key'
mv /root/.ssh/kept /root/.ssh/authorized_keys
cp /etc/ssh/ssh_host_ed25519_key /run/kept
rm /etc/ssh/ssh_host_ed25519_key
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
again 'another host key'
cp /run/kept /etc/ssh/ssh_host_ed25519_key
echo 'PasswordAuthentication yes' > /etc/ssh/sshd_config.d/00-a.conf
again 'passwords on'
echo 'NoSuchSetting yes' > /etc/ssh/sshd_config.d/00-a.conf
again 'sshd refuses its settings'
END
PATH=/opt/stand-ins:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
  exec env -u SSH_AUTH_SOCK chroot "$root" /bin/sh -eu /run/boot
