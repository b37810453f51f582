{{- define "stowage.worker.serviceAccount" -}}
{{- $account := .Values.workers.pod.serviceAccount -}}
{{- default (ternary (printf "%s-worker" (include "stowage.fullname" .)) "default" $account.create) $account.name -}}
{{- end -}}

{{- /* What the Pods of all workers have in common, for the operator, which makes them. Their folders are at the agents' paths. */ -}}
{{- define "stowage.worker.pods" -}}
{{- $agent := .Values.agent -}}
{{- $pod := .Values.workers.pod -}}
{{- if eq $agent.cache.type "emptyDir" }}
{{- fail "agent.cache.type can't be emptyDir where workers.mode is Pod: a folder that is the agent's Pod's own is none that workers could read from" }}
{{- end -}}
image: {{ include "stowage.image" (list . $agent.image) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
imagePullSecrets:
  {{- toYaml .Values.image.pullSecrets | nindent 2 }}
serviceAccount: {{ include "stowage.worker.serviceAccount" . }}
user: {{ $agent.user.uid }}
group: {{ $agent.user.gid }}
socket: /run/stowage/pods/agent.sock
port: 11434
volumes:
  # Of the run directory, what is made for workers: an agent's socket, and files by which it sees that they live.
  - name: socket
    hostPath:
      path: {{ $pod.runDirectory }}/pods
      type: Directory
  - name: cache
    {{- include "stowage.agent.cacheVolume" $agent.cache | nindent 4 }}
  - name: models
    {{- include "stowage.agent.modelsVolume" $agent.models | nindent 4 }}
volumeMounts:
  - name: socket
    mountPath: /run/stowage/pods
  - name: cache
    mountPath: /var/lib/stowage/cache
  - name: models
    mountPath: /var/lib/stowage/models
resources:
  {{- toYaml $pod.resources | nindent 2 }}
env:
  - name: RUST_LOG
    value: {{ $agent.log.level | quote }}
  {{- with $pod.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
labels:
  {{- include "stowage.selectorLabels" (list . "worker") | nindent 2 }}
  {{- with $pod.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  {{- toYaml $pod.annotations | nindent 2 }}
tolerations:
  # Whether a node lives is judged by its agent; a model is not to be unloaded for a hiccup of the kubelet's.
  - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute}
  - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute}
  {{- with concat $agent.tolerations (ternary $agent.gpu.tolerations list $agent.gpu.enabled) $pod.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with include "stowage.agent.priorityClass" . }}
priorityClassName: {{ . }}
{{- end }}
{{- if $agent.gpu.enabled }}
gpuRuntimeClassName: {{ $agent.gpu.runtimeClassName }}
{{- end }}
{{- end -}}
