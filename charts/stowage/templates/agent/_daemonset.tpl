{{- /* An agent's DaemonSet. Called with (dict "root" . "name" NAME "gpu" BOOL). */ -}}
{{- define "stowage.agent.daemonset" -}}
{{- $root := .root -}}
{{- $agent := $root.Values.agent -}}
{{- $pods := eq $root.Values.workers.mode "Pod" -}}
{{- $resources := $agent.resources | default (include "stowage.agent.resources" . | fromYaml) -}}
{{- if and .gpu $agent.gpu.resources }}{{ $resources = $agent.gpu.resources }}{{ end -}}
{{- $rollingUpdate := $agent.updateStrategy.rollingUpdate | default dict -}}
{{- if and $pods (not (has (toString ($rollingUpdate.maxSurge | default 0)) (list "0" "0%"))) }}
{{- fail "agent.updateStrategy.rollingUpdate.maxSurge must be 0 where workers.mode is Pod: two agents of a node can't share its workers" }}
{{- end -}}
{{- $given := list -}}
{{- if eq $agent.cache.type "hostPath" }}{{ $given = append $given (dict "name" "cache" "path" "/var/lib/stowage/cache") }}{{ end -}}
{{- if $pods }}{{ $given = append $given (dict "name" "run" "path" "/run/stowage") }}{{ end -}}
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: {{ .name }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "stowage.labels" $root | nindent 4 }}
    app.kubernetes.io/component: agent
spec:
  selector:
    matchLabels:
      {{- include "stowage.selectorLabels" (list $root "agent") | nindent 6 }}
      stowage.dev/gpu: {{ .gpu | quote }}
  updateStrategy:
    {{- toYaml $agent.updateStrategy | nindent 4 }}
  template:
    metadata:
      # Nothing here follows the chart's version: agents are replaced, and models in their Pods loaded anew, only where something changes that they are made of.
      labels:
        {{- include "stowage.selectorLabels" (list $root "agent") | nindent 8 }}
        stowage.dev/gpu: {{ .gpu | quote }}
        {{- with $agent.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        kubectl.kubernetes.io/default-container: agent
        {{- with $agent.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "stowage.agent.serviceAccount" $root }}
      {{- with $root.Values.image.pullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with include "stowage.agent.priorityClass" $root }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- if .gpu }}
      runtimeClassName: {{ $agent.gpu.runtimeClassName }}
      hostPID: {{ ternary $pods $agent.gpu.hostPID (kindIs "invalid" $agent.gpu.hostPID) }}
      {{- end }}
      # Names of Services in workers' environments are of no use to them.
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ $agent.terminationGracePeriodSeconds }}
      securityContext:
        runAsNonRoot: true
        runAsUser: {{ $agent.user.uid }}
        runAsGroup: {{ $agent.user.gid }}
        fsGroup: {{ $agent.user.gid }}
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile:
          type: RuntimeDefault
      {{- with $given }}
      initContainers:
        # The kubelet makes a hostPath's folder as root's; this gives them to the user that the agent runs as, and can do nothing else.
        - name: prepare
          image: {{ include "stowage.image" (list $root $agent.image) }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args:
            - prepare
            - --user={{ $agent.user.uid }}
            - --group={{ $agent.user.gid }}
            {{- range . }}
            - {{ .path }}
            {{- end }}
          resources:
            {{- toYaml $resources | nindent 12 }}
          securityContext:
            runAsNonRoot: false
            runAsUser: 0
            runAsGroup: 0
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities:
              drop: [ALL]
              add: [CHOWN]
          volumeMounts:
            {{- range . }}
            - name: {{ .name }}
              mountPath: {{ .path }}
            {{- end }}
      {{- end }}
      containers:
        - name: agent
          image: {{ include "stowage.image" (list $root $agent.image) }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args:
            - run
            {{- if not .gpu }}
            - --cpu-only
            {{- end }}
            {{- range $root.Values.sources.allowAddresses }}
            - --allow-source-address={{ . }}
            {{- end }}
            {{- with $agent.extraArgs }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          env:
            - name: STOWAGE_NODE_NAME
              valueFrom:
                fieldRef:
                  fieldPath: spec.nodeName
            - name: STOWAGE_SYSTEM_NAMESPACE
              valueFrom:
                fieldRef:
                  fieldPath: metadata.namespace
            - name: STOWAGE_ADVERTISE_ADDRESS
              valueFrom:
                fieldRef:
                  fieldPath: status.podIP
            - name: STOWAGE_MODEL_DIR
              value: /var/lib/stowage/models
            - name: STOWAGE_CACHE_DIR
              value: /var/lib/stowage/cache
            - name: STOWAGE_RUN_DIR
              value: /run/stowage
            {{- if $pods }}
            - name: STOWAGE_WORKERS
              value: pod
            {{- else }}
            # They are in this Pod, and end with it; so they are told to.
            - name: STOWAGE_STOP_WORKERS_ON_EXIT
              value: "true"
            # And what they print is in this container's log, which the kubelet keeps from growing.
            - name: STOWAGE_WORKER_LOG
              value: forward
            {{- end }}
            - name: RUST_LOG
              value: {{ $agent.log.level | quote }}
            {{- if $root.Values.apiKeys.existingSecret }}
            - name: STOWAGE_API_KEYS_DIR
              value: /etc/stowage/api-keys
            {{- end }}
            {{- if .gpu }}
            - name: NVIDIA_VISIBLE_DEVICES
              value: all
            - name: NVIDIA_DRIVER_CAPABILITIES
              value: compute,utility
            {{- end }}
            {{- if $root.Values.sources.certificateAuthorities.configMap }}
            {{- include "stowage.authorities.env" $root | nindent 12 }}
            {{- end }}
            {{- with $agent.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            - name: door
              containerPort: 11434
              {{- with $agent.door.hostPort }}
              hostPort: {{ . }}
              {{- end }}
          startupProbe:
            httpGet:
              path: /healthz
              port: door
            periodSeconds: 1
            failureThreshold: 60
          # Patient: all cores may be busy with a prompt, and what restarts the agent ends workers that are in its Pod.
          livenessProbe:
            httpGet:
              path: /healthz
              port: door
            periodSeconds: 20
            timeoutSeconds: 10
            failureThreshold: 6
          readinessProbe:
            httpGet:
              path: /readyz
              port: door
            periodSeconds: 10
            timeoutSeconds: 5
          resources:
            {{- toYaml $resources | nindent 12 }}
          securityContext:
            {{- include "stowage.restrictedContainer" $root | nindent 12 }}
          volumeMounts:
            - name: run
              mountPath: /run/stowage
            - name: cache
              mountPath: /var/lib/stowage/cache
            - name: models
              mountPath: /var/lib/stowage/models
              readOnly: true
            {{- if $root.Values.apiKeys.existingSecret }}
            - name: api-keys
              mountPath: /etc/stowage/api-keys
              readOnly: true
            {{- end }}
            {{- if $root.Values.sources.certificateAuthorities.configMap }}
            {{- include "stowage.authorities.mount" $root | nindent 12 }}
            {{- end }}
      volumes:
        - name: run
          {{- if $pods }}
          hostPath:
            path: {{ $root.Values.workers.pod.runDirectory }}
            type: DirectoryOrCreate
          {{- else }}
          emptyDir: {}
          {{- end }}
        {{- with $root.Values.apiKeys.existingSecret }}
        # Mounted by the kubelet: the agent's account reads no Secret.
        - name: api-keys
          secret:
            secretName: {{ . }}
        {{- end }}
        {{- if $root.Values.sources.certificateAuthorities.configMap }}
        {{- include "stowage.authorities.volume" $root | nindent 8 }}
        {{- end }}
        - name: cache
          {{- include "stowage.agent.cacheVolume" $agent.cache | nindent 10 }}
        - name: models
          {{- include "stowage.agent.modelsVolume" $agent.models | nindent 10 }}
      {{- with (ternary (merge (dict) $agent.nodeSelector $agent.gpu.nodeSelector) $agent.nodeSelector .gpu) }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with (ternary (concat $agent.tolerations $agent.gpu.tolerations) $agent.tolerations .gpu) }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with include "stowage.agent.nodeSelectorTerms" . }}
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
              {{- . | nindent 14 }}
      {{- end }}
{{- end -}}

{{- /* The terms asked for. Of the DaemonSet for nodes without GPUs each becomes one for every label that nodes with GPUs have: without any of them, a node has none. */ -}}
{{- define "stowage.agent.nodeSelectorTerms" -}}
{{- $agent := .root.Values.agent -}}
{{- if and $agent.gpu.enabled (not .gpu) -}}
{{- $asked := $agent.nodeSelectorTerms | default (list (dict)) -}}
{{- $terms := list -}}
{{- range $term := $asked -}}
{{- range $key, $value := $agent.gpu.nodeSelector -}}
{{- $without := dict "key" $key "operator" "NotIn" "values" (list $value) -}}
{{- $expressions := append (get $term "matchExpressions" | default list) $without -}}
{{- $terms = append $terms (merge (dict "matchExpressions" $expressions) (omit $term "matchExpressions")) -}}
{{- end -}}
{{- end -}}
{{- toYaml $terms -}}
{{- else if $agent.nodeSelectorTerms -}}
{{- toYaml $agent.nodeSelectorTerms -}}
{{- end -}}
{{- end -}}

{{- /* What an agent needs, and in mode Process its models with it. Beside GPUs it measures what a driver's context takes there, which takes host memory, too. */ -}}
{{- define "stowage.agent.resources" -}}
{{- if eq .root.Values.workers.mode "Pod" -}}
requests: {cpu: 50m, memory: 128Mi}
limits: {memory: {{ ternary "1Gi" "512Mi" .gpu }}}
{{- else -}}
requests: {cpu: "1", memory: 4Gi}
limits: {memory: 4Gi}
{{- end -}}
{{- end -}}

{{- define "stowage.agent.cacheVolume" -}}
{{- if eq .type "hostPath" -}}
hostPath:
  path: {{ .hostPath.path }}
  type: DirectoryOrCreate
{{- else if eq .type "persistentVolumeClaim" -}}
persistentVolumeClaim:
  claimName: {{ required "agent.cache.persistentVolumeClaim.claimName is needed where agent.cache.type is persistentVolumeClaim" .persistentVolumeClaim.claimName }}
{{- else if .emptyDir.sizeLimit -}}
emptyDir:
  sizeLimit: {{ .emptyDir.sizeLimit }}
{{- else -}}
emptyDir: {}
{{- end -}}
{{- end -}}

{{- define "stowage.agent.modelsVolume" -}}
{{- if eq .type "hostPath" -}}
hostPath:
  path: {{ .hostPath.path }}
  type: DirectoryOrCreate
{{- else if eq .type "persistentVolumeClaim" -}}
persistentVolumeClaim:
  claimName: {{ required "agent.models.persistentVolumeClaim.claimName is needed where agent.models.type is persistentVolumeClaim" .persistentVolumeClaim.claimName }}
  readOnly: true
{{- else -}}
emptyDir: {}
{{- end -}}
{{- end -}}
