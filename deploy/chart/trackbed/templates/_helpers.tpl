{{- define "trackbed.labels" -}}
app.kubernetes.io/name: trackbed
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- /* What selects the pods of a role; the rest of the labels may change. */}}
{{- define "trackbed.selector" -}}
app.kubernetes.io/name: trackbed
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "trackbed.image" -}}
image: {{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- /* Mounting for the host takes privilege: Kubernetes allows Bidirectional propagation to no other. */}}
{{- define "trackbed.privileged" -}}
privileged: true
runAsUser: 0
runAsGroup: 0
readOnlyRootFilesystem: true
{{- end }}

{{- /* The folders that agent and keeper see alike, at the same paths as on the node. */}}
{{- define "trackbed.hostMounts" -}}
- { name: dev, mountPath: /dev }
- { name: run, mountPath: /run/trackbed }
- { name: pods, mountPath: {{ .Values.kubelet.root }}/pods, mountPropagation: Bidirectional }
- { name: plugins, mountPath: {{ .Values.kubelet.root }}/plugins, mountPropagation: Bidirectional }
{{- range $index, $folder := .Values.agent.cacheDirs }}
- { name: cache-{{ $index }}, mountPath: {{ $folder }} }
{{- end }}
{{- end }}

{{- define "trackbed.hostVolumes" -}}
- { name: dev, hostPath: { path: /dev, type: Directory } }
- { name: run, hostPath: { path: /run/trackbed, type: DirectoryOrCreate } }
# Kubelet made both: where they are not, kubelet.root is not its folder, and no pod starts.
- { name: pods, hostPath: { path: {{ .Values.kubelet.root }}/pods, type: Directory } }
- { name: plugins, hostPath: { path: {{ .Values.kubelet.root }}/plugins, type: Directory } }
{{- range $index, $folder := .Values.agent.cacheDirs }}
- { name: cache-{{ $index }}, hostPath: { path: {{ $folder }}, type: DirectoryOrCreate } }
{{- end }}
{{- end }}

{{- /* Variables of a daemon by which it sends traces, if it is to. */}}
{{- define "trackbed.traces" -}}
{{- if .Values.traces.endpoint -}}
- { name: HOST_IP, valueFrom: { fieldRef: { fieldPath: status.hostIP } } }
- { name: NODE_NAME, valueFrom: { fieldRef: { fieldPath: spec.nodeName } } }
- { name: OTEL_RESOURCE_ATTRIBUTES, value: k8s.node.name=$(NODE_NAME) }
- { name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ .Values.traces.endpoint | quote }} }
{{- end -}}
{{- end }}

{{- /* host:port of an address that an environment variable holds. */}}
{{- define "trackbed.podAddress" -}}
{{- if eq .Values.ipFamily "IPv6" }}[$(POD_IP)]{{ else }}$(POD_IP){{ end -}}
{{- end }}

{{- define "trackbed.anyAddress" -}}
{{- if eq .Values.ipFamily "IPv6" }}[::]{{ else }}0.0.0.0{{ end -}}
{{- end }}
