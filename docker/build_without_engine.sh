#!/bin/sh
# Builds an image of docker/Dockerfile without Docker, prints its size and can run its program: buildah runs all in a chroot.
#
#     sudo docker/build_without_engine.sh [TARGET] [FOLDER]        # serve, train or registry; about 5 minutes for serve
#
# It needs root, Debian's packages `buildah` and `debootstrap`, and some 10 GB in FOLDER. Where no registry of images can be reached,
# the base is Debian 12 with its own Python 3.11 under the name of the official image, and the printed size is near that of the real one.
# With BASE=pull the base is downloaded as usual. PACKAGES names the folders with packages to which your settings of pip refer. The
# result stays in FOLDER/storage.
#
# With RUN=yes the program of the image is run after the build, as user 10001: its version, a forecast of a small table by the
# pretrained network and, of `train`, a training, which takes a minute; of `registry`, MLflow's version. RUN=only builds nothing and
# runs an earlier result. A failure is the exit code. A chroot has no read-only root file system, no limits and no network of its own.
set -eu
target=${1:-serve}
folder=${2:-/var/tmp/forecaster-build}
root=$(cd "$(dirname "$0")/.." && pwd)
base=$(sed -n 's/^FROM \(python:[^ ]*\) AS build$/\1/p' "$root/docker/Dockerfile")
mkdir -p "$folder"
build() {
    buildah --root "$folder/storage" --runroot "$folder/run" --storage-driver vfs "$@"
}

if [ "${BASE:-debian}" != pull ] && ! build inspect --type image "$base" >/dev/null 2>&1; then
    if [ ! -x "$folder/base/usr/bin/python3.11" ]; then
        debootstrap --variant=minbase --include=python3.11,python3.11-venv,python3-distutils,ca-certificates bookworm "$folder/base"
    fi
    ln -sf ../../bin/python3.11 "$folder/base/usr/local/bin/python"
    # As in the official slim images.
    for unused in var/cache/apt var/lib/apt/lists usr/share/doc usr/share/man usr/share/locale debootstrap; do
        rm -rf "$folder/base/$unused"
    done
    mkdir -p "$folder/base/var/lib/apt/lists/partial" "$folder/base/var/cache/apt/archives/partial"
    container=$(build from scratch)
    build copy --quiet "$container" "$folder/base" /
    build config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd /bin/sh "$container"
    build commit --quiet --rm "$container" "docker.io/library/$base"
fi

build_image() {
    # A company's certificates and index of packages are needed while building only, and are no part of the image.
    set -- --volume /etc/ssl/certs:/etc/ssl/certs:ro
    if [ -f /etc/pip.conf ]; then set -- "$@" --volume /etc/pip.conf:/etc/pip.conf:ro; fi
    pip_settings=$HOME/.config/pip/pip.conf
    if [ -f "$pip_settings" ]; then set -- "$@" --volume "$pip_settings:/root/.config/pip/pip.conf:ro"; fi
    for packages in ${PACKAGES:-}; do set -- "$@" --volume "$packages:$packages:ro"; done
    build bud --isolation chroot --network host --pull-never --format docker --layers=false --target "$target" \
        --build-arg "PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL:-}" "$@" \
        --file "$root/docker/Dockerfile" --ignorefile "$root/.dockerignore" --tag "forecaster-$target" "$root"
}

# Runs a program of the image as its user; the small table is /data/sales.csv.
run_in_image() {
    build run --isolation chroot --network host --user 10001:10001 --volume "$folder/sales.csv:/data/sales.csv:ro" "$container" -- "$@"
}

run_image() {
    awk 'BEGIN { print "unique_id,ds,y"; for (s = 0; s < 3; s++) for (k = 0; k < 60; k++)
        printf "T%d,%d-%02d-01,%.2f\n", s, 2018 + int(k / 12), k % 12 + 1, 20 + 5 * s + 4 * sin(k * 3.14159265 / 6) }' \
        >"$folder/sales.csv"
    chmod 644 "$folder/sales.csv"
    run_in_image sh -c 'test "$(id -u)" = 10001 && test -w /var/lib/forecaster && test ! -w /opt/forecaster'
    if [ "$target" = registry ]; then
        run_in_image python -c 'import flask_wtf, mlflow.server.auth, psycopg; print("mlflow", mlflow.__version__)'
        return
    fi
    run_in_image forecaster --version
    run_in_image forecaster forecast /data/sales.csv --horizon 3
    if [ "$target" = train ]; then run_in_image forecaster train /data/sales.csv --horizon 6; fi
}

if [ "${RUN:-no}" != only ]; then build_image; fi
container=$(build from --pull-never "localhost/forecaster-$target")
trap 'build rm "$container" >/dev/null' EXIT
mounted=$(build mount "$container")
echo "image forecaster-$target: $(du --summarize --one-file-system --block-size=1000000 "$mounted" | cut -f1) MB, of which" \
    "$(du --summarize --block-size=1000000 "$mounted/opt/forecaster" | cut -f1) MB are /opt/forecaster"
if [ "${RUN:-no}" != no ]; then
    run_image
    echo "image forecaster-$target: its program runs"
fi
